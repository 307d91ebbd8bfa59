"""Every parser of what comes from a peer, a proxy or a file, and the modules that have none.

`test_parsers.py` tries all of them with drawn and mutated bytes, `guided.py` with coverage as its
guide. A module that decodes and stands in neither list fails the tests: whoever writes a parser
adds it here, or says why nobody else's bytes get there.
"""

import ast
import re
from collections.abc import Iterator

from tests.architecture import PACKAGES, ROOT, Source
from tests.fuzz import federated, homomorphic, jobs, logs, peers, requests, serving, tables
from tests.fuzz.parser import Parser

PARSERS: dict[str, Parser] = {
    **peers.PARSERS,
    **logs.PARSERS,
    **tables.PARSERS,
    **jobs.PARSERS,
    **homomorphic.PARSERS,
    **requests.PARSERS,
    **serving.PARSERS,
    **federated.PARSERS,
}

NOBODY_ELSES: dict[str, str] = {
    "mpc_train.base.packed": "called by parsers of messages, which are listed",
    "mpc_train.base.release": "reads the program's own pyproject.toml",
    "mpc_train.checkpoints.joined": "views words of the vault, as many as the job has",
    "mpc_train.commands.local.script_node": "the launcher's own file, in a directory of its own",
    "mpc_train.commands.operating.watch": "asks a page of this machine, which the operator names",
    "mpc_train.jobs.schedule": "views the bytes of a stream that was made here",
    "mpc_train.twin.private": "views the system's randomness",
    "protocols.noise.gaussian": "views the words of a stream that was made here",
    "mpc_train.serving.lanes": "the head of a frame that the channel has verified; test_lanes",
    "mpc_train.owners.apart": "reads what a child of this process has written to their pipe",
    "mpc_train.run.phases.notes": "reads an object of the vault, which has verified",
    "mpc_train.run.phases.shelf": "reads an object of the vault, which has verified",
    "mpc_train.commands.local.run": "the model that a node of this machine has written",
    "mpc_train.federated.flower": "views a message that was made here",
    "mpc_train.federated.mean": "views the system's randomness",
    "mpc_train.federated.rounds.client": "views pieces whose length it has checked; test_rounds",
    "mpc_train.federated.rounds.program": "views frames that receive_all has measured",
    "mpc_train.networks.network": "views the bytes of a stream that was made here",
    "mpc_train.owners.tokens": "views hashes that were made here",
    "mpc_train.training.first_weights": "views the bytes of a stream that was made here",
    "mpc_train.training.range_guard": "views the bytes of a stream that was made here",
    "mpc_train.serving.allowance": "the node's own file, which nobody else may read",
    "mpc_train.serving.monitoring.record": "the node's own file, which nobody else may read",
    "parties.keys.services.keyring_service": "the keyring's answer goes to key_set; a live test",
    "parties.keys.services.vault_service": "answers of the organisation's own server; a live test",
    "protocols.roles.evaluator": "views frames that receive_all has measured",
}
"""Modules that decode, but nothing that others wrote or could exchange unseen."""

_DECODES = re.compile(
    r"(msgspec\.(json|msgpack|toml)\.(decode|Decoder)|msgspec\.convert|tomllib\.loads?|json\.loads?"
    r"|struct\.(unpack|unpack_from|Struct|iter_unpack)"
    r"|numpy\.(load|frombuffer|fromfile|lib\.format\.\w+)|polars\.(read|scan)_\w+"
    r"|safetensors(\.\w+)*\.(load|load_file|safe_open)|zipfile\.ZipFile|csv\.reader"
    r"|base64\.\w*decode|urllib\.parse\.urlsplit|sqlite3\.connect|fastexcel\.\w+"
    r"|PIL\.Image\.open|onnx\.load\w*|xml\.\w+(\.\w+)*|yaml\.\w+|zlib\.decompress\w*"
    r"|protocols\.canonical\.unpack\w*|ast\.literal_eval)\Z"
)


_HINT = re.compile(
    r"decode|loads|load|unpack|Struct|frombuffer|fromfile|convert|read_|scan_|urlsplit"
)


def decoders() -> Iterator[Source]:
    """The modules in which a first look finds something that may decode."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            if _HINT.search(text):
                yield Source(path.relative_to(ROOT).as_posix(), ast.parse(text))


def decoding(source: Source) -> Iterator[str]:
    """Calls in a module that make something of bytes or text, by their names."""
    for _, name in source.uses:
        if _DECODES.match(name):
            yield name


def unlisted(source: Source) -> list[str]:
    """What a module decodes, if nobody tries it with bytes of strangers and no reason is given."""
    listed = {module for parser in PARSERS.values() for module in parser.reads}
    if source.module in listed or source.module in NOBODY_ELSES:
        return []
    return sorted(set(decoding(source)))
