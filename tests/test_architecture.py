"""Every module keeps the rules of the architecture, and every rule can fail.

Each rule is shown snippets that it must catch and neighbours that it must let pass.
"""

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.architecture import (
    ARROWS,
    PACKAGES,
    ROOT,
    RULES,
    Rule,
    Source,
    arrows_point_one_way,
    circles,
    crowded,
    crypten_has_one_door,
    crypten_lends_no_protocol,
    inits_are_empty,
    masks_come_from_keyed_streams,
    nodes_run_without_the_twin,
    nothing_is_pickled,
    parties_enter_through_the_composition_root,
    printing_has_one_door,
    protocols_touch_no_outside_world,
    read_sources,
    rooms_rest_on_those_below,
    tables_enter_through_crypten,
    torch_load_reads_weights_only,
    underscores_stay_in_their_module,
    zmq_has_one_module,
)

TOP_LEVEL = {
    *PACKAGES,
    "tests",
    "examples",
    "launch.py",
    "pyproject.toml",
    "README.md",
    "Makefile",
    "requirements.txt",
    "LICENSE",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    ".ci",
    ".git",
    ".gitignore",
}


CAUGHT: list[tuple[Rule, str, str]] = [
    (arrows_point_one_way, "protocols/ring/products.py", "import parties.agreement.session"),
    (arrows_point_one_way, "protocols/ring/products.py", "from mpc_train.jobs import job"),
    (
        arrows_point_one_way,
        "parties/nodes/node.py",
        "def f():\n    from mpc_train.jobs.job import Job",
    ),
    (
        arrows_point_one_way,
        "parties/nodes/node.py",
        "import importlib\nimportlib.import_module('mpc_train')",
    ),
    (arrows_point_one_way, "mpc_train/cli.py", "import launch"),
    (arrows_point_one_way, "mpc_train/cli.py", "from tests.helpers import x"),
    (arrows_point_one_way, "examples/digits/make_data.py", "import protocols"),
    (arrows_point_one_way, "launch.py", "from parties import supervisor"),
    (
        rooms_rest_on_those_below,
        "mpc_train/jobs/job.py",
        "from mpc_train.admission.load import load_job",
    ),
    (
        rooms_rest_on_those_below,
        "protocols/ring/products.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from protocols.roles import role",
    ),
    (rooms_rest_on_those_below, "parties/keys/roster.py", "import parties.wire.admission"),
    (rooms_rest_on_those_below, "mpc_train/notes.py", ""),
    (nodes_run_without_the_twin, "mpc_train/run/program.py", "from mpc_train.twin import join"),
    (nodes_run_without_the_twin, "mpc_train/commands/nodes.py", "import mpc_train.twin.training"),
    (inits_are_empty, "parties/__init__.py", "from parties.nodes import node"),
    (parties_enter_through_the_composition_root, "mpc_train/training/trainer.py", "import parties"),
    (
        parties_enter_through_the_composition_root,
        "mpc_train/jobs/job.py",
        "from parties import roster",
    ),
    (zmq_has_one_module, "parties/nodes/coordinator.py", "import zmq.asyncio"),
    (zmq_has_one_module, "launch.py", "from zmq import Context"),
    (crypten_has_one_door, "mpc_train/training/trainer.py", "import crypten"),
    (crypten_has_one_door, "protocols/crypten_tensor/tensor.py", "import crypten.nn as nn"),
    (
        crypten_has_one_door,
        "mpc_train/networks/network.py",
        "from protocols.crypten_tensor.importing import crypten",
    ),
    (
        crypten_has_one_door,
        "protocols/shares/reveal.py",
        "from ..crypten_tensor.importing import crypten",
    ),
    (crypten_has_one_door, "protocols/shares/reveal.py", "from ..crypten_tensor import importing"),
    (
        tables_enter_through_crypten,
        "mpc_train/linkage/sharing.py",
        "from protocols.shares.inputs import from_evaluator",
    ),
    (underscores_stay_in_their_module, "parties/nodes/node.py", "def f(x):\n    return x._hidden"),
    (
        underscores_stay_in_their_module,
        "mpc_train/run/program.py",
        "from mpc_train.run.memory import _trim",
    ),
    (
        crypten_lends_no_protocol,
        "examples/crypten_script/small_network.py",
        "from mpc_train.scripts import crypten\nimport crypten.mpc",
    ),
    (
        crypten_lends_no_protocol,
        "protocols/crypten_tensor/tensor.py",
        "from protocols.crypten_tensor.importing import crypten\ncrypten.mpc.MPCTensor([1])",
    ),
    (
        crypten_lends_no_protocol,
        "mpc_train/run/program.py",
        "from protocols.crypten_tensor.tensor import crypten\ncrypten.init()",
    ),
    (
        nothing_is_pickled,
        "mpc_train/results/artifact.py",
        "from protocols.crypten_tensor.tensor import crypten\ncrypten.save(1, 'x')",
    ),
    (nothing_is_pickled, "parties/keys/vault.py", "import pickle"),
    (nothing_is_pickled, "parties/keys/vault.py", "from joblib import dump"),
    (nothing_is_pickled, "mpc_train/results/artifact.py", "import torch as t\nt.save(1, 'x')"),
    (nothing_is_pickled, "mpc_train/results/artifact.py", "from torch import save"),
    (
        nothing_is_pickled,
        "mpc_train/owners/table.py",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
    ),
    (nothing_is_pickled, "launch.py", "__import__('marshal')"),
    (
        torch_load_reads_weights_only,
        "mpc_train/results/artifact.py",
        "import torch\ntorch.load('x')",
    ),
    (torch_load_reads_weights_only, "tests/test_x.py", "from torch import load\nload('x')"),
    (
        torch_load_reads_weights_only,
        "launch.py",
        "import torch as t\nt.load('x', weights_only=False)",
    ),
    (
        torch_load_reads_weights_only,
        "mpc_train/results/artifact.py",
        "import torch\nmap(torch.load, ['x'])",
    ),
    (masks_come_from_keyed_streams, "protocols/roles/role.py", "import random"),
    (masks_come_from_keyed_streams, "parties/nodes/node.py", "from random import choice"),
    (
        masks_come_from_keyed_streams,
        "protocols/roles/role.py",
        "import numpy as np\nnp.random.rand()",
    ),
    (masks_come_from_keyed_streams, "protocols/roles/role.py", "from numpy import random"),
    (
        masks_come_from_keyed_streams,
        "protocols/roles/role.py",
        "import torch\ntorch.randint(2, (1,))",
    ),
    (masks_come_from_keyed_streams, "protocols/roles/role.py", "from torch import randn_like"),
    (masks_come_from_keyed_streams, "protocols/roles/role.py", "x.random_()"),
    (masks_come_from_keyed_streams, "protocols/roles/role.py", "(x + y).uniform_(0, 1)"),
    (printing_has_one_door, "mpc_train/commands/job.py", "print(name)"),
    (printing_has_one_door, "parties/nodes/node.py", "import sys\nsys.stderr.write(name)"),
    (protocols_touch_no_outside_world, "protocols/sealing/record.py", "import time"),
    (protocols_touch_no_outside_world, "protocols/sealing/record.py", "from socket import socket"),
    (protocols_touch_no_outside_world, "protocols/sealing/record.py", "import os\nos.environ['X']"),
    (
        protocols_touch_no_outside_world,
        "protocols/sealing/record.py",
        "import os as o\no.getenv('X')",
    ),
    (protocols_touch_no_outside_world, "protocols/sealing/record.py", "from os import environ"),
    (protocols_touch_no_outside_world, "protocols/sealing/record.py", "import sys\nsys.argv"),
]

PASSES: list[tuple[Rule, str, str]] = [
    (
        underscores_stay_in_their_module,
        "parties/nodes/node.py",
        "class A:\n    def __init__(self):\n        self._b = 1\ndef c(a):\n    return a._b",
    ),
    (
        tables_enter_through_crypten,
        "mpc_train/linkage/sharing.py",
        "from protocols.shares.inputs import OutsideSource, send_outside",
    ),
    (arrows_point_one_way, "parties/nodes/node.py", "from protocols.channel import Channel"),
    (arrows_point_one_way, "parties/nodes/node.py", "from .session import Session\nimport numpy"),
    (arrows_point_one_way, "launch.py", "from mpc_train.cli import main"),
    (rooms_rest_on_those_below, "mpc_train/run/local.py", "from mpc_train.jobs.job import Job"),
    (rooms_rest_on_those_below, "mpc_train/jobs/job.py", "from mpc_train.jobs.train import Train"),
    (
        nodes_run_without_the_twin,
        "mpc_train/commands/local/run.py",
        "from mpc_train.twin import join",
    ),
    (inits_are_empty, "mpc_train/commands/__init__.py", '"""The verbs."""'),
    (parties_enter_through_the_composition_root, "mpc_train/run/program.py", "import parties"),
    (
        parties_enter_through_the_composition_root,
        "mpc_train/commands/local/run.py",
        "import parties",
    ),
    (zmq_has_one_module, "parties/wire/zmq_transport.py", "import zmq"),
    (crypten_has_one_door, "protocols/crypten_tensor/importing.py", "import crypten"),
    (
        crypten_has_one_door,
        "protocols/crypten_tensor/tensor.py",
        "from .importing import crypten",
    ),
    (
        crypten_has_one_door,
        "mpc_train/training/trainer.py",
        "from protocols.crypten_tensor.tensor import crypten",
    ),
    (
        crypten_lends_no_protocol,
        "protocols/crypten_tensor/tensor.py",
        "from .importing import crypten\ncrypten.nn.Linear\ncrypten.gradients",
    ),
    (
        nothing_is_pickled,
        "mpc_train/owners/table.py",
        "import numpy\nnumpy.load('x', allow_pickle=False)",
    ),
    (
        torch_load_reads_weights_only,
        "mpc_train/results/artifact.py",
        "import torch\ntorch.load('x', weights_only=True)",
    ),
    (
        torch_load_reads_weights_only,
        "mpc_train/results/artifact.py",
        "from safetensors.torch import load",
    ),
    (masks_come_from_keyed_streams, "protocols/roles/role.py", "import torch\ntorch.empty(2)"),
    (masks_come_from_keyed_streams, "parties/nodes/node.py", "import os\nos.urandom(32)"),
    (printing_has_one_door, "mpc_train/base/printing.py", "print(name)"),
    (printing_has_one_door, "mpc_train/run/progress.py", "bar.console.print(name)"),
    (protocols_touch_no_outside_world, "protocols/sealing/record.py", "import os\nos.urandom(32)"),
    (protocols_touch_no_outside_world, "parties/nodes/node.py", "import time\nimport subprocess"),
]


@pytest.fixture(scope="module")
def sources() -> tuple[Source, ...]:
    return read_sources()


def test_every_package_was_found(sources: Sequence[Source]) -> None:
    assert {*PACKAGES, "tests"} <= {source.owner for source in sources}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule, sources: Sequence[Source]) -> None:
    broken = [line for source in sources for line in rule(source)]
    assert not broken, "\n" + "\n".join(broken)


def test_modules_import_each_other_in_no_circle(sources: Sequence[Source]) -> None:
    assert circles(sources) == []


def test_a_circle_is_seen() -> None:
    imports = {"a": "import parties.b", "b": "from parties import c", "c": "from .a import x"}
    planted = [Source(f"parties/{name}.py", ast.parse(code)) for name, code in imports.items()]
    assert circles(planted) == [["parties.a", "parties.b", "parties.c"]]
    assert circles(planted[:2]) == []


def test_folders_are_no_larger_than_can_be_taken_in(sources: Sequence[Source]) -> None:
    assert crowded(sources) == []


def test_a_crowded_folder_is_seen() -> None:
    planted = [Source(f"parties/wire/m{number}.py", ast.parse("")) for number in range(15)]
    assert crowded(planted) == ["parties.wire: 15"] and crowded(planted[1:]) == []


@pytest.mark.parametrize(("rule", "path", "code"), CAUGHT)
def test_rule_catches(rule: Rule, path: str, code: str) -> None:
    assert list(rule(Source(path, ast.parse(code))))


@pytest.mark.parametrize(("rule", "path", "code"), PASSES)
def test_rule_lets_pass(rule: Rule, path: str, code: str) -> None:
    assert list(rule(Source(path, ast.parse(code)))) == []


def test_every_rule_is_shown_both_sides() -> None:
    for examples in (CAUGHT, PASSES):
        assert {rule for rule, _, _ in examples} == set(RULES)


def unexpected_entries(root: Path) -> set[str]:
    """Entries of the repository's top that are neither listed nor ignored by git."""
    ignored = [line.strip("/") for line in (root / ".gitignore").read_text().splitlines()]
    return {
        entry.name
        for entry in root.iterdir()
        if entry.name not in TOP_LEVEL
        and not any(fnmatch.fnmatch(entry.name, pattern) for pattern in ignored)
    }


def test_the_repository_has_only_the_entries_that_were_agreed() -> None:
    assert unexpected_entries(ROOT) == set()


def test_an_unexpected_entry_is_seen(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(".venv/\n*.egg-info/\n/runs/\n")
    for name in (".venv", "mpc_train.egg-info", "runs", "parties", "docs"):
        (tmp_path / name).mkdir()
    assert unexpected_entries(tmp_path) == {"docs"}


DISTRIBUTIONS = {
    "PIL": "pillow",
    "cyclonedx": "cyclonedx-python-lib",
    "dp_accounting": "dp-accounting",
    "packageurl": "packageurl-python",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
    "opentelemetry": "opentelemetry-sdk",
    "prometheus_client": "prometheus-client",
}


def undeclared(sources: Sequence[Source], dependencies: list[str]) -> set[str]:
    """Third-party modules imported by what users run but not named by pyproject.toml."""
    declared = {re.split("[>=[]", requirement)[0] for requirement in dependencies}
    known = set(sys.stdlib_module_names) | set(ARROWS) | {"crypten"}
    imported = {
        name.split(".")[0]
        for source in sources
        if source.owner != "tests"
        for _, name in source.imports
    }
    return {name for name in imported - known if DISTRIBUTIONS.get(name, name) not in declared}


def test_every_import_is_a_declared_dependency(sources: Sequence[Source]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: of for name, of in project["optional-dependencies"].items() if name != "dev"}
    optional = [requirement for of in extras.values() for requirement in of]
    assert undeclared(sources, [*project["dependencies"], *optional]) == set()


def test_an_undeclared_import_is_seen() -> None:
    code = "import json, zmq, requests.auth, torch"
    source = Source("parties/nodes/node.py", ast.parse(code))
    assert undeclared([source], ["pyzmq>=27", "torch>=2.13,<2.14"]) == {"requests"}


def test_parties_and_openings_start_without_torch() -> None:
    """Keys, rosters, the coordinator and whoever opens a result must answer at once; torch alone
    takes a second."""
    modules = ["protocols", "mpc_train", "mpc_train.node.evidence", "mpc_train.results.opening"]
    for path in sorted((ROOT / "parties").rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules.append(dotted.removesuffix(".__init__"))
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    for heavy in ('torch', 'crypten', 'polars', 'sklearn', 'numba'):\n"
        "        assert heavy not in sys.modules, f'{name} imports {heavy}'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
