"""The channel that the arithmetic uses: sealed frames over the route that the transport found.

Gives the guarantees of `protocols.channel.Channel`. A frame is two AES-256-GCM records: the label,
and the payload with the label as additional data. Each direction has its own key and counts its
records, so an altered, replayed, dropped or reordered frame raises AuthenticationError, after which
the direction is unusable. A carrier of frames, such as the coordinator, sees only their lengths.

Keys change without a pause. The sender announces it in a frame of its own, the last one under the
old key: an empty one for the next key in line (by age), or one that names the handshake whose key
follows (after a rotation of an identity). The receiver changes at that frame, so none is lost,
whatever the route holds back. Other threads only say that it is due; per frame it costs one look at
each end.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from protocols.channel import MAX_FRAME_BYTES, MAX_LABEL_BYTES, Buffer
from protocols.errors import AuthenticationError, FrameError, PeerTimeoutError
from protocols.sealing.handshake import Keys
from protocols.sealing.record import TAG_BYTES, RecordOpener, RecordSealer, record_context
from protocols.sealing.session import HASH_BYTES

KEY_UPDATE = b"\0key-update"
"""The label of a frame after which the sender's next key is in force."""

MAX_UPDATES = 8
"""How many of these may follow each other."""

HEAD = b"label"
"""The label of the record that contains a frame's label."""


class RawFrames(Protocol):
    """The carrier of sealed frames: `data_plane.DataPlane`, or a faulty one in a test."""

    def send(self, peer: str, label: bytes, payload: Buffer) -> None: ...

    def receive(self, peer: str, timeout_s: float) -> tuple[bytes, Buffer]: ...


class SecureChannel:
    """Sealed frames between `me` and each peer that it shook hands with in session `sid`.

    For use by one thread. `timeout_s` is how long a receive waits for a peer that is connected but
    silent; a broken connection or an abort ends the wait at once.
    """

    def __init__(
        self,
        frames: RawFrames,
        me: str,
        sid: bytes,
        keys: Mapping[str, Keys],
        timeout_s: float,
    ) -> None:
        self._frames = frames
        self._timeout_s = timeout_s
        self._sealers = {
            peer: RecordSealer(pair.send, record_context(sid, me, peer))
            for peer, pair in keys.items()
        }
        self._openers = {
            peer: RecordOpener(pair.receive, record_context(sid, peer, me))
            for peer, pair in keys.items()
        }
        self._last_label: dict[str, bytes] = {}
        self._due: dict[str, tuple[bytes, bytes]] = {}
        """By receiver, what its next frame announces: transcript and key, or nothing and nothing.
        Other threads add to it; the thread of the channel takes from it."""
        self._agreed: dict[tuple[str, bytes], bytes] = {}
        """By sender and transcript of a handshake, the key that it may announce."""
        self.bytes_sent = 0
        self.bytes_received = 0
        self.frames_sent = 0
        self.frames_received = 0

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Inside this context, a connected peer may be silent for `seconds` more."""
        before, self._timeout_s = self._timeout_s, self._timeout_s + seconds
        try:
            yield
        finally:
            self._timeout_s = before

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        """Seal and queue one frame. Does not wait for the peer."""
        if len(label) > MAX_LABEL_BYTES:
            raise FrameError(f"a label has {len(label)} bytes, at most {MAX_LABEL_BYTES}")
        if len(payload) > MAX_FRAME_BYTES:
            raise FrameError(f"a frame has {len(payload)} bytes, at most {MAX_FRAME_BYTES}")
        if peer in self._due:
            self._announce(peer)
        self._send(peer, label, payload)

    def _send(self, peer: str, label: bytes, payload: Buffer) -> None:
        sealer = self._sealers[peer]
        head = sealer.seal(HEAD, label)
        sealed = sealer.seal(label, payload)
        self._frames.send(peer, head, sealed)
        self.bytes_sent += len(head) + len(sealed)
        self.frames_sent += 1

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        """The next frame of `peer`: its label, and the payload in a writable buffer that belongs to
        the caller.

        Skips frames that announce a key. Raises FrameError if it is longer than `max_bytes`,
        AuthenticationError if it is not the next one that `peer` sealed, PeerTimeoutError,
        PeerLostError, InterruptedRunError.
        """
        label, payload = self._receive(peer, max_bytes)
        updates = 0
        while label == KEY_UPDATE:
            updates += 1
            if updates > MAX_UPDATES:
                raise FrameError(f"{peer} announces one key after the other and sends nothing")
            self._follow(peer, bytes(payload))
            label, payload = self._receive(peer, max_bytes)
        return label, payload

    def _receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        try:
            head, sealed = self._frames.receive(peer, self._timeout_s)
        except PeerTimeoutError as error:
            last = self._last_label.get(peer)
            after = f"after frame {describe_label(last)}" if last is not None else "at all"
            raise PeerTimeoutError(f"{error}; nothing came {after}") from error
        opener = self._openers[peer]
        try:
            label = bytes(opener.open(HEAD, head))
        except AuthenticationError as error:
            raise AuthenticationError(f"{peer}, the label of a frame: {error}") from error
        length = len(sealed) - TAG_BYTES
        if label == KEY_UPDATE:
            max_bytes = HASH_BYTES
        if length > max_bytes:
            raise FrameError(
                f"{peer} sent {length} bytes as {describe_label(label)}, at most {max_bytes} fit"
            )
        try:
            payload = opener.open(label, sealed)
        except AuthenticationError as error:
            raise AuthenticationError(f"{peer}, {describe_label(label)}: {error}") from error
        self._last_label[peer] = label
        self.bytes_received += len(head) + len(sealed)
        self.frames_received += 1
        return label, payload

    def renew(self) -> None:
        """From any thread: the next frame to each peer comes with its next key in line."""
        for peer in self._sealers:
            self._due.setdefault(peer, (b"", b""))

    def agree(self, peer: str, keys: Keys) -> None:
        """From any thread: `peer` may change to the key of this handshake from now on."""
        self._agreed[peer, keys.transcript] = keys.receive

    def change(self, peer: str, keys: Keys) -> None:
        """From any thread: the next frame to `peer`, which is known to have agreed, comes under the
        key of this handshake."""
        self._due[peer] = (keys.transcript, keys.send)

    def _announce(self, peer: str) -> None:
        transcript, key = self._due.pop(peer)
        self._send(peer, KEY_UPDATE, transcript)
        if transcript:
            self._sealers[peer].replace(key)
        else:
            self._sealers[peer].advance()

    def _follow(self, peer: str, transcript: bytes) -> None:
        """Change to the key that `peer` announced under its present one."""
        if not transcript:
            self._openers[peer].advance()
            return
        try:
            self._openers[peer].replace(self._agreed.pop((peer, transcript)))
        except KeyError:
            raise AuthenticationError(f"{peer} announces a key that was never agreed on") from None


def describe_label(label: bytes) -> str:
    """A label for messages: as text if it is text, otherwise in hexadecimal; labels are public."""
    if label.isascii() and label.decode("ascii").isprintable():
        return repr(label.decode("ascii"))
    return label.hex()
