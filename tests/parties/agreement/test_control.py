"""Control messages: what is malformed ends as a ControlError, whatever it is."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.agreement import control
from parties.agreement.control import decode_from_coordinator, decode_from_node, encode
from parties.errors import ControlError
from parties.nodes.artifacts import Collector, split
from protocols.sealing.signatures import SIGNATURE_BYTES

SIGNATURE = bytes(SIGNATURE_BYTES)
FROM_NODE = [
    control.Hello(1, "ann", "tcp://10.0.0.1:4000"),
    control.Accept(bytes(32), bytes(32), SIGNATURE),
    control.SignSession(SIGNATURE),
    control.Ready(),
    control.Progress({"step": 3, "seconds": 0.5, "stage": "train", "last": False}),
    control.ArtifactPart("sealed", "office/model.bin", 0, True, b"data"),
    control.Done(b"{}"),
    control.Carry("ann", b"sealed", bytes(16)),
    control.Abort("policy"),
]


@pytest.mark.parametrize("message", FROM_NODE, ids=lambda message: type(message).__name__)
def test_messages_are_read_as_they_were_written(message: control.FromNode) -> None:
    assert decode_from_node(encode(message), "ann") == message
    with pytest.raises(ControlError):
        decode_from_coordinator(encode(message), "coordinator")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_from_node, decode_from_coordinator):
        with pytest.raises(ControlError):
            decode(data, "ann")


@given(st.sampled_from(FROM_NODE), st.data())
def test_an_altered_message_is_a_message_or_refused(
    message: control.FromNode, data: st.DataObject
) -> None:
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_from_node(bytes(raw), "ann")
    except ControlError as error:
        assert str(error).isascii() and len(str(error)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"t": "hello", "version": 1, "name": "Ann"},
        {"t": "hello", "version": 1, "name": "ann\n"},
        {"t": "hello", "version": 1, "name": "a" * 64},
        {"t": "hello", "version": 1, "name": "ann", "address": "ipc:///tmp/x"},
        {"t": "hello", "version": 1, "name": "ann", "more": 1},
        {"t": "hello", "version": "1", "name": "ann"},
        {"t": "abort", "code": "the value 3.14 is out of range"},
        {"t": "accept", "nonce": b"short", "constants": bytes(32), "signature": SIGNATURE},
        {"t": "progress", "fields": {str(n): n for n in range(65)}},
        {"t": "progress", "fields": {"a": "x" * 257}},
        {"t": "progress", "fields": {"a": [1]}},
        {"t": "done", "summary": bytes(control.MAX_SUMMARY_BYTES + 1)},
        {"t": "artifact", "kind": "sealed", "path": "../x", "index": 0, "last": True, "data": b""},
        {"t": "artifact", "kind": "..", "path": "a/x", "index": 0, "last": True, "data": b""},
        {"t": "artifact", "kind": "k", "path": "a//x", "index": 0, "last": True, "data": b""},
        {"t": "artifact", "kind": "k", "path": "/etc/x", "index": 0, "last": True, "data": b""},
        {"t": "artifact", "kind": "k", "path": "a", "index": -1, "last": True, "data": b""},
        {"t": "nonsense"},
        [],
    ],
)
def test_what_is_out_of_bounds_is_refused(fields: object) -> None:
    with pytest.raises(ControlError, match="ann"):
        decode_from_node(msgspec.msgpack.encode(fields), "ann")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ControlError):
        decode_from_node(b"\x91" * 100_000, "ann")


@pytest.mark.parametrize("size", [0, 1, control.PART_BYTES, control.PART_BYTES + 1])
def test_artifacts_come_back_whole(tmp_path: Path, size: int) -> None:
    collector = Collector(tmp_path)
    blob = bytes(range(256)) * (size // 256) + bytes(size % 256)
    paths = [collector.add("ann", part) for part in split("sealed", "office/model.bin", blob)]
    assert paths[:-1] == [None] * (len(paths) - 1)
    target = tmp_path / "sealed" / "office" / "ann" / "model.bin"
    assert paths[-1] == target and target.read_bytes() == blob
    assert target.stat().st_mode & 0o077 == 0


def test_parts_out_of_order_or_twice_are_refused(tmp_path: Path) -> None:
    parts = list(split("sealed", "office/model.bin", bytes(2 * control.PART_BYTES)))
    collector = Collector(tmp_path)
    with pytest.raises(ControlError, match="out of order"):
        collector.add("ann", parts[1])
    collector.add("ann", parts[0])
    with pytest.raises(ControlError, match="out of order"):
        collector.add("ann", parts[0])
    assert not list(tmp_path.rglob("*.bin"))
    whole = Collector(tmp_path)
    for part in parts:
        whole.add("ann", part)
    with pytest.raises(ControlError, match="twice"):
        for part in parts:
            whole.add("ann", part)


@pytest.mark.parametrize("name", ["model.bin", "a/b/c", "office/../x", ""])
def test_a_sealed_artifact_needs_one_recipient(name: str) -> None:
    with pytest.raises(ControlError):
        list(split("sealed", name, b""))
