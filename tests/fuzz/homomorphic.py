"""What a client of encrypted questions sends to its server, what it gets, and what both keep."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mpc_train.errors import ArtifactError, QueryError
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.messages import (
    Answer,
    Ask,
    Give,
    Go,
    Got,
    Message,
    Refused,
    Show,
    encode,
    read_at_client,
    read_at_server,
)
from mpc_train.homomorphic.parameters import DEGREE
from mpc_train.homomorphic.polynomials import ANSWER, CIPHERTEXT, KEY, key_id, pack, unpack
from tests.fuzz.parser import Parser
from tests.support.preparation_case import prepared_job


def heads(*messages: Message) -> Callable[[], Sequence[bytes]]:
    return lambda: [encode(message)[0] for message in messages]


def described() -> Sequence[bytes]:
    with TemporaryDirectory() as folder:
        return [Description.of("risk", prepared_job(Path(folder))).data]


def polynomials(kind: bytes) -> Callable[[], Sequence[bytes]]:
    def made() -> Sequence[bytes]:
        words = np.ones((2, 4 if kind == KEY else 3, DEGREE), np.uint64)
        return [pack(kind, key_id(words), words)]

    return made


def with_part(read: Callable[[Sequence[bytes]], Any], blob: bool) -> Callable[[bytes], Any]:
    return lambda data: read((data, b"") if blob else (data,))


@cache
def _request() -> Any:
    from tests.support.homomorphic import pair, plain_served

    return plain_served(1)[0], pair()


def computed(data: bytes) -> Any:
    """A ciphertext at the server, down to SEAL."""
    from mpc_train.homomorphic.evaluation import Evaluation

    weights, pair = _request()
    request = Evaluation(weights, pair.public)
    request.take(0, data)
    return request.answers()


def decrypted(data: bytes) -> Any:
    return _request()[1].decrypt(data, 3)


def kept(data: bytes) -> Any:
    from mpc_train.homomorphic.keys import KeyPair
    from tests.support.homomorphic import seal

    return KeyPair.of(seal(), data)


PARSERS: dict[str, Parser] = {
    "encrypted question": Parser(
        with_part(read_at_server, blob=True),
        heads(Ask("risk", bytes(32)), Give(3)),
        (QueryError,),
        ("mpc_train.homomorphic.messages",),
    ),
    "question without a part": Parser(
        with_part(read_at_server, blob=False),
        heads(Show("risk")),
        (QueryError,),
        ("mpc_train.homomorphic.messages",),
    ),
    "answer of a server": Parser(
        with_part(read_at_client, blob=False),
        heads(Go(), Got(3), Refused("busy")),
        (QueryError,),
        ("mpc_train.homomorphic.messages",),
    ),
    "encrypted answer": Parser(
        with_part(read_at_client, blob=True),
        heads(Answer(0)),
        (QueryError,),
        ("mpc_train.homomorphic.messages",),
    ),
    "description of a model": Parser(
        Description.read, described, (QueryError,), ("mpc_train.homomorphic.description",)
    ),
    **{
        f"polynomials {kind.decode()}": Parser(
            lambda data, kind=kind: unpack(kind, data),  # type: ignore[misc]
            polynomials(kind),
            (QueryError,),
            ("mpc_train.homomorphic.polynomials",),
            costly=True,
        )
        for kind in (KEY, CIPHERTEXT, ANSWER)
    },
}

if find_spec("tenseal") is not None:
    PARSERS |= {
        "ciphertext at the server": Parser(
            computed,
            lambda: [_request()[1].encrypt(np.ones(3))],
            (QueryError,),
            ("mpc_train.homomorphic.evaluation",),
            costly=True,
        ),
        "answer at the client": Parser(
            decrypted,
            lambda: computed(_request()[1].encrypt(np.ones(3))),
            (QueryError,),
            ("mpc_train.homomorphic.keys",),
            costly=True,
        ),
        "key pair of the vault": Parser(
            kept,
            lambda: [_request()[1].stored()],
            (ArtifactError,),
            ("mpc_train.homomorphic.keys",),
            costly=True,
        ),
    }
