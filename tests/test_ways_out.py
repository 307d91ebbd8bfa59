"""Shares leave by the listed ways alone: every planted leak is caught, and no entry is idle."""

import ast

import pytest

from tests.architecture import Source, read_sources
from tests.ways_out import (
    FIELDS,
    WAY_RULES,
    WAYS,
    Rule,
    parties_know_no_arithmetic,
    shares_leave_by_listed_ways,
    uses_of_ways,
)

METRICS = "mpc_train/evaluation/metrics.py"
SOURCES = read_sources()
ARITHMETIC = "from protocols.shares.masked import Masked\n"
NAMES = [name for way in WAYS for name in sorted(way.names)]
MEMBERS = [*NAMES, *(name for way in WAYS for name in sorted(way.members))]


def broken(path: str, code: str, rule: Rule = shares_leave_by_listed_ways) -> list[str]:
    return list(rule(Source(path, ast.parse(code))))


@pytest.mark.parametrize("rule", WAY_RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    found = [line for source in SOURCES for line in rule(source)]
    assert not found, "\n" + "\n".join(found)


def test_every_entry_is_used() -> None:
    """What is listed and no longer written would wait for somebody to write it again."""
    used = {(id(f.way), f.listed) for source in SOURCES for f in uses_of_ways(source)}
    idle = [
        f"{way.what}: {entry}"
        for way in (*WAYS, FIELDS)
        for entry in way.users
        if (id(way), entry) not in used
    ]
    assert not idle


def test_a_name_is_one_way() -> None:
    names = [*MEMBERS, *FIELDS.names, *FIELDS.members]
    assert len(set(names)) == len(names)


LEAKS = {
    "a mask of zeros": "from protocols.roles.role import Mask\nrole.open(z.part, Mask(zeros))",
    "a mask by another name": (
        "from protocols.roles.role import Mask as M\nrole.open(z.part, M(lam))"
    ),
    "a mask of its module": "from protocols import role as r\nr.Mask(lam)",
    "a mask handed on": "from protocols.roles.evaluator import Mask\nmake = Mask",
    "a mask of a class of its own": "from protocols.roles.role import Mask\nclass M(Mask): ...",
    "a share to all": "role.broadcast(b'rvl ', lam)",
    "a share to all, later": "tell_all = role.broadcast\ntell_all(b'rvl ', lam)",
    "a share to one": (
        "from protocols.roles.frames import send_all\nsend_all(channel, peer, label, x)"
    ),
    "a share by another name": (
        "from protocols.roles.frames import send_all as s\ns(channel, to, b'', x)"
    ),
    "a share by its module": (
        "import protocols.roles.frames as f\nf.send_all(channel, peer, label, x)"
    ),
    "a share by a long name": (
        "import protocols.roles.frames\nprotocols.roles.frames.send_all(c, p, label, x)"
    ),
    "a share by a late import": (
        "from importlib import import_module\nimport_module('protocols.roles.frames').send_all(c)"
    ),
    "a share through another module": (
        "from protocols.shares.inputs import send_all\nsend_all(c, p, b, x)"
    ),
    "a share through every name": "from protocols.roles.frames import *\nsend_all(c, p, b, x)",
    "a frame of one's own": "session.channel.send(peer, label, words.tobytes())",
    "a frame, mapped": "list(map(channel.send, peers, labels, shares))",
    "a frame of a role's channel": "role._channel",
    "a decision that nobody listed": "x.role.tell(bool(words[0]))",
    "Δ": "x.delta.get()",
    "Δ, later": "take = x.delta.get\ntake()",
    "Δ, when it comes": "x.part.then(print)",
    "Δ in a function": "x.delta.map(print)",
    "a mask share": "print(x.lam)",
    "a masked bit": "bits.beta.map(found.append)",
    "its mask share": "found.append(bits.mu)",
    "a part, opened": "x.part.get()",
    "an attribute by its name": "getattr(x, 'delta')",
    "a method by its name": "getattr(role, 'broadcast')(b'rvl ', words)",
    "an attribute by a path": "from operator import attrgetter\nattrgetter('delta.get')(x)()",
    "a method by a caller": "from operator import methodcaller\nmethodcaller('broadcast', b'', x)",
    "an attribute, below the class": "object.__getattribute__(x, 'lam')",
    "a pattern": "match x:\n    case Masked(lam=share):\n        print(share)",
    "a half of one's own": (
        "from protocols.shares.reveal import SealedHalf\nSealedHalf(words, share)"
    ),
    "a half by another name": (
        "from protocols.shares.reveal import SealedHalf as H\nH(words, share)"
    ),
    "a tensor as a whole": "x.get_plain_text()",
    "a tensor of a call": "f(x).get_plain_text(dst=0)",
    "an artifact": "session.emit('public', 'shares', words.tobytes())",
    "an envelope": (
        "from protocols.sealing.envelope import seal_envelope\nseal_envelope(words, info=i)"
    ),
    "news": "session.progress(loss=total)",
    "a stream": "role._stream.words(5)",
}
HELD = {
    "all fields": "x.__dict__",
    "all fields of a call": "vars(x)",
    "all fields as a dictionary": "from dataclasses import asdict\nasdict(x)",
    "all fields as a tuple": "import dataclasses as d\nd.astuple(x)",
    "a name put together": "getattr(x, 'del' + 'ta')",
    "a name from elsewhere": "for name in x.__slots__:\n    getattr(x, name)",
    "a pattern by places": "match x:\n    case Masked(role, shape, delta):\n        print(delta)",
    "below the class": "import inspect\ninspect.getattr_static(x, name)",
}
"""Where shares are at hand."""


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_caught(name: str) -> None:
    for path in (METRICS, "protocols/comparison/less_than.py", "launch.py"):
        assert broken(path, LEAKS[name])


@pytest.mark.parametrize("name", HELD)
def test_a_planted_leak_where_shares_are_is_caught(name: str) -> None:
    assert broken("protocols/comparison/less_than.py", HELD[name])
    assert broken(METRICS, ARITHMETIC + HELD[name])
    assert broken("mpc_train/tables/cells.py", HELD[name]) == []


@pytest.mark.parametrize("name", MEMBERS)
def test_every_name_is_caught_in_every_form(name: str) -> None:
    for code in (
        f"x.{name}()",
        f"(x + y).{name}()",
        f"f = x.{name}",
        f"map(x.{name}, y)",
        f"getattr(x, '{name}')()",
        f"getattr(x, '{name}', None)",
        f"import operator\noperator.attrgetter('a.{name}')(x)",
        f"match x:\n    case Masked({name}=y): pass",
    ):
        assert broken(METRICS, code), code


@pytest.mark.parametrize("name", NAMES)
def test_every_imported_name_is_caught_in_every_form(name: str) -> None:
    for code in (
        f"from protocols.some import {name}\n{name}(x)",
        f"from protocols.some import {name} as s\ns(x)",
        f"from mpc_train.some import {name}\n{name}(x)",
        f"import protocols.some as m\nm.{name}(x)",
        f"def f():\n    from protocols.some import {name}\n    return {name}",
        f"class {name}: ...\n{name}(x)",
    ):
        assert broken(METRICS, code), code


def test_a_name_handed_on_under_another_is_caught_where_it_is_renamed() -> None:
    assert broken(METRICS, "from protocols.roles.frames import send_all as s")


def test_a_listed_expression_allows_nothing_else() -> None:
    assert broken("mpc_train/evaluation/own.py", "half.delta - half.lam") == []
    assert broken("mpc_train/evaluation/own.py", "x.delta")
    assert broken("mpc_train/training/losses.py", "self.delta") == []
    assert broken("mpc_train/training/losses.py", "outputs.delta.get()")
    assert broken("protocols/linkage/shuffle.py", "x.delta.get()") == []
    assert broken("protocols/linkage/shuffle.py", "x.lam.get()")


@pytest.mark.parametrize(
    "code",
    [
        "from protocols.shares.reveal import SealedHalf\ndef f(x: SealedHalf) -> None: ...",
        "from protocols.roles.role import Mask\nmask: Mask",
        "found.get('delta')",
        "found.get(name, 0)",
        "import numpy as np\nnp.broadcast_to(x, shape)",
        "def send(x): ...\nclass T:\n    def get_plain_text(self): raise NotImplementedError",
        "delta = 1\nlam = delta",
        "getattr(x, 'shape')",
        "from mpc_train.run.progress import ProgressView\nProgressView()",
    ],
)
def test_what_is_no_leak_passes(code: str) -> None:
    assert broken(METRICS, ARITHMETIC + code) == []


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("from protocols.shares.masked import Masked", True),
        ("from protocols import evaluator", True),
        ("import protocols.roles.streams as s", True),
        ("import protocols", True),
        ("import importlib\nimportlib.import_module('protocols.roles.role')", True),
        ("from protocols.errors import FrameError\nfrom protocols.sealing import hpke", False),
    ],
)
def test_parties_take_the_wire_only(code: str, caught: bool) -> None:
    assert bool(broken("parties/nodes/node.py", code, parties_know_no_arithmetic)) == caught
    assert not broken("mpc_train/owners/table.py", code, parties_know_no_arithmetic)


def test_parties_send_what_they_are_given() -> None:
    assert broken("parties/agreement/session.py", "channel.send(peer, label, sid)") == []
