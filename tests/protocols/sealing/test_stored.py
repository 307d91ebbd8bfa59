"""Stored objects: each opens as what it was kept as, and its file key fits nothing else.

The pinned object of tests/vectors is opened by a reader of its own, written from the description.
"""

import hmac
import io
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protocols.canonical import pack
from protocols.errors import EnvelopeError
from protocols.sealing import container
from protocols.sealing.stored import ObjectInfo, open_object, read_header, rewrap, seal_object

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())["object"]
INFO = ObjectInfo("hospital-a", "table", "admissions", 3, "study", "2026-01-31T12:00:00Z")


class InsecureKeys:
    """Wraps under a key that everybody knows, and says what it was asked."""

    def __init__(self, name: str = "one", key: bytes = bytes(32)) -> None:
        self.name, self.key = name, key
        self.infos: list[bytes] = []

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        self.infos.append(info)
        return self.name, AESGCM(self.key).encrypt(bytes(12), file_key, info)

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        assert key_id == self.name
        return AESGCM(self.key).decrypt(bytes(12), wrapped, info)


class ForgetfulKeys(InsecureKeys):
    """A key service that does not look at what a key is for: the format must not rely on it."""

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        return super().wrap(file_key, b"")

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        return super().unwrap(key_id, wrapped, b"")


def sealed(
    content: bytes, info: ObjectInfo = INFO, keys: InsecureKeys | None = None
) -> tuple[container.Header, bytes]:
    out = io.BytesIO()
    header, writer = seal_object(out, info, keys or InsecureKeys())
    writer.write(content)
    writer.finish()
    return header, out.getvalue()


def opened(header: container.Header, chunks: bytes, keys: InsecureKeys | None = None) -> bytes:
    reader = open_object(header, io.BytesIO(chunks), len(chunks), keys or InsecureKeys())
    return reader.read()


def by_hand(framed: bytes, chunks: bytes, key: bytes) -> tuple[list[bytes], bytes]:
    """Fields of the context, and the content, by the description alone."""
    magic = b"mpc-train envelope 2\n"
    assert framed.startswith(magic)
    body = framed[len(magic) + 4 :]
    assert int.from_bytes(framed[len(magic) : len(magic) + 4], "big") == len(body)

    def fields(data: bytes) -> list[bytes]:
        found = []
        while data:
            length = int.from_bytes(data[:4], "big")
            found.append(data[4 : 4 + length])
            data = data[4 + length :]
        return found

    def packed(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    kind, context, _, wrapped = fields(body)
    file_key = AESGCM(key).decrypt(wrapped[:12], wrapped[12:], packed(magic, kind, context))
    info = packed(b"mpc-train/envelope/2/payload", kind, sha256(context).digest())
    payload_key = hmac.digest(file_key, info + b"\1", "sha256")  # HKDF-Expand, one block
    plain = AESGCM(payload_key).decrypt(bytes(11) + b"\1", chunks, None)
    return fields(context), plain


def test_the_pinned_object_is_what_its_description_says() -> None:
    framed, chunks = bytes.fromhex(VECTOR["header"]), bytes.fromhex(VECTOR["chunks"])
    fields, content = by_hand(framed, chunks, bytes.fromhex(VECTOR["key"]))
    assert content.decode() == VECTOR["content"]
    assert [field.decode() for field in (*fields[:3], *fields[4:])] == [
        VECTOR[name] for name in ("node", "kind", "name", "job", "created")
    ]
    assert int.from_bytes(fields[3], "big") == VECTOR["version"]
    _, info = read_header(framed)
    assert info == ObjectInfo(
        *(VECTOR[name] for name in ("node", "kind", "name", "version", "job", "created"))
    )


def test_an_object_says_what_it_is_and_opens() -> None:
    header, chunks = sealed(b"content")
    again, info = read_header(header.framed())
    assert info == INFO
    assert opened(again, chunks) == b"content"


@pytest.mark.parametrize("keys", [InsecureKeys(), ForgetfulKeys()], ids=["binding", "forgetful"])
@pytest.mark.parametrize(
    "change",
    [
        {"node": "hospital-b"},
        {"kind": "model"},
        {"name": "patients"},
        {"version": 4},
        {"job": "other"},
        {"created": "2026-02-01T12:00:00Z"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_under_another_context_it_does_not_open(
    change: dict[str, object], keys: InsecureKeys
) -> None:
    header, chunks = sealed(b"content", keys=keys)
    other = replace(INFO, **change)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"^$|does not verify"):
        opened(replace(header, context=other.context()), chunks, keys)


def test_the_chunks_of_another_object_do_not_open() -> None:
    header, _ = sealed(b"one")
    _, chunks = sealed(b"two")
    with pytest.raises(EnvelopeError, match="table admissions, version 3: chunk 0"):
        opened(header, chunks)


def test_what_a_file_key_is_for_names_kind_and_context() -> None:
    keys = InsecureKeys()
    sealed(b"", keys=keys)
    (info,) = keys.infos
    assert info == pack(b"mpc-train envelope 2\n", b"object", INFO.context())


def test_a_key_wrapped_anew_opens_the_same_chunks() -> None:
    old, new = InsecureKeys(), InsecureKeys("two", b"\1" * 32)
    header, chunks = sealed(b"content", keys=old)
    changed = rewrap(header, old, new)
    assert (changed.key_id, changed.context) == ("two", header.context)
    assert opened(changed, chunks, new) == b"content"


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_headers_cause_only_our_error(data: bytes, with_magic: bool) -> None:
    blob = container.MAGIC + len(data).to_bytes(4, "big") + data if with_magic else data
    with pytest.raises(EnvelopeError):
        read_header(blob)


def test_a_header_has_bounds() -> None:
    header, _ = sealed(b"")
    with pytest.raises(EnvelopeError, match="bytes follow"):
        read_header(header.framed() + b"\0")
    with pytest.raises(EnvelopeError, match="another kind"):
        read_header(replace(header, kind="result").framed())
    with pytest.raises(EnvelopeError, match="malformed"):
        read_header(replace(header, context=b"").framed())
    for change in ({"name": "x" * 256}, {"version": 0}, {"version": 1 << 63}):
        with pytest.raises(EnvelopeError):
            replace(INFO, **change)


@pytest.mark.parametrize("ink", ["\n", "\x1b[2J", "\u202e", "\x85"])
def test_what_is_shown_before_it_is_verified_controls_no_screen(ink: str) -> None:
    header, _ = sealed(b"content")
    forged = [replace(header, key_id=f"one{ink}")]
    for place in range(6):
        fields = [b"n", b"table", b"t", (1).to_bytes(8, "big"), b"", b"2026"]
        if place != 3:
            fields[place] += ink.encode()
            forged.append(replace(header, context=pack(*fields)))
    for each in forged:
        with pytest.raises(EnvelopeError, match="control characters"):
            read_header(each.framed())
    with pytest.raises(EnvelopeError, match="returned an id with control characters"):
        sealed(b"content", keys=InsecureKeys(f"one{ink}"))
