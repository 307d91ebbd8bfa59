"""Bytes of strangers, drawn and mutated: each parser gives a value or one of its named errors."""

import ast
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings

from tests.architecture import ROOT, Source
from tests.fuzz.parser import mutated
from tests.fuzz.table import NOBODY_ELSES, PARSERS, decoders, decoding, unlisted

MAX_TEXT = 6_000
"""Characters of an error."""

MAX_MEMORY_BYTES = 64 << 20
"""What a parser may take at most for a few kilobytes, in Python's own memory."""

EXAMPLES, COSTLY_EXAMPLES = 60, 15


@pytest.mark.parametrize("kind", PARSERS)
def test_only_named_errors(kind: str) -> None:
    parser = PARSERS[kind]

    @settings(
        deadline=None,
        suppress_health_check=list(HealthCheck),
        max_examples=COSTLY_EXAMPLES if parser.costly else EXAMPLES,
    )
    @given(mutated(parser.seeds))
    def run(data: bytes) -> None:
        try:
            parser.parse(data)
        except parser.errors as error:
            assert len(str(error)) < MAX_TEXT

    run()


@pytest.mark.parametrize("kind", [kind for kind, parser in PARSERS.items() if not parser.unread])
def test_what_is_whole_is_read(kind: str) -> None:
    for whole in PARSERS[kind].seeds:
        PARSERS[kind].parse(whole)


@pytest.mark.parametrize("kind", PARSERS)
def test_memory_is_bounded(kind: str) -> None:
    """Lengths that claim gigabytes, and whatever is nested, take no more than a small multiple."""
    parser = PARSERS[kind]
    parser.seeds  # noqa: B018
    greedy = [b"\xff" * 64, b"\xdd\xff\xff\xff\xff" * 4, b"[" * 20_000, b"{" * 20_000]
    whole = parser.seeds[0]
    greedy += [whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :] for at in range(0, 48, 4)]
    tracemalloc.start()
    try:
        for data in greedy:
            try:
                parser.parse(data)
            except parser.errors:
                continue
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MAX_MEMORY_BYTES, f"{most >> 20} MiB"


def test_every_module_that_decodes_is_listed() -> None:
    found = {source.path: unlisted(source) for source in decoders()}
    found = {path: names for path, names in found.items() if names}
    assert not found, f"add a parser to tests/fuzz, or a reason to NOBODY_ELSES: {found}"


def test_a_new_parser_would_be_noticed() -> None:
    text = "import msgspec\nfrom json import loads\nmsgspec.json.decode(b'')\nloads('')\n"
    planted = Source("mpc_train/jobs/planted.py", ast.parse(text))
    assert unlisted(planted) == ["json.loads", "msgspec.json.decode"]


@pytest.mark.parametrize("kind", PARSERS)
def test_a_parser_names_modules_that_exist(kind: str) -> None:
    for name in PARSERS[kind].reads:
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name


def test_the_lists_name_modules_that_exist_and_decode() -> None:
    modules = {source.module: source for source in decoders()}
    for name in NOBODY_ELSES:
        assert name in modules and set(decoding(modules[name])), name
