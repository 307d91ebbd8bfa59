"""Sealed files: from one named sender to named recipients, for one step of one session.

Guarantees that only the holders of the recipients' keys read the payload, and only `threshold` of
them together; that they learn nothing from a file that its sender did not sign whole; and that a
file cannot pass for one of another subject, session, step, sender, recipients or set of tensors.
The caller must check which senders a result needs, and that their payloads agree.

    context      suites, subject, sid, step, names, sender, recipients, threshold, digests of the
                 recipients' keys, commitments, payload bytes
    suites       of each recipient, that of its key (`recipient_keys`) ‖ "/Ed25519+ML-DSA-65"
    shares       of the file key, one for each recipient in order (`secret_sharing`)
    commitments  HMAC-SHA256(file key, "mpc-train/envelope/3/key"), then of each share i, from 1,
                 HMAC-SHA256(share, "mpc-train/envelope/3/share" ‖ i in 4 bytes)
    wrapped key  of each recipient, its share, sealed to its key with pack(info, i in 4 bytes) as
                 `info`, where info is pack(magic, kind, context)
    key id       threshold ‖ " of " ‖ number of recipients
    trailer      signatures over "envelope/3" ‖ (SHA-256 of the header, SHA-256 of the chunks)

in the format of `container`. With one recipient the share is the file key itself. The commitments
name whoever contributes a wrong share, and keep the sender from sealing different things to
different choices of recipients; keys and shares are uniformly random, so that commitments say
nothing of them. Every fault is an EnvelopeError.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Protocol

from protocols.canonical import decode_text, pack, pack_texts, unpack, unpack_texts
from protocols.channel import Buffer
from protocols.errors import AuthenticationError, EnvelopeError, FrameError
from protocols.sealing import container, signatures
from protocols.sealing.container import RESULT, Header
from protocols.sealing.recipient_keys import MAX_SEALED_BYTES, RecipientKey
from protocols.sealing.secret_sharing import (
    SHARE_BYTES,
    combine_shares,
    split_secret,
)
from protocols.sealing.session import HASH_BYTES, MAX_TEXT_BYTES
from protocols.sealing.signatures import Signer, Verifier
from protocols.sealing.stream import open_chunks, seal_chunks, sealed_bytes

MAX_NAMES = 65536
MAX_NAME_BYTES = 256
MAX_NAMES_BYTES = 1 << 22
MAX_SUBJECT_BYTES = 256
MAX_RECIPIENTS = 64
MAX_PAYLOAD_BYTES = 1 << 36
"""64 GiB. Sizes are checked against the file in hand before anything is allocated."""

_PURPOSE = "envelope/3"
_COMMITTED_KEY = b"mpc-train/envelope/3/key"
_COMMITTED_SHARE = b"mpc-train/envelope/3/share"
_TEXTS_BYTES = MAX_RECIPIENTS * (MAX_TEXT_BYTES + 4)
_BOUNDS = (
    *(_TEXTS_BYTES, MAX_SUBJECT_BYTES, HASH_BYTES, 8, MAX_NAMES_BYTES, MAX_TEXT_BYTES),
    *(_TEXTS_BYTES, 4, MAX_RECIPIENTS * HASH_BYTES, (1 + MAX_RECIPIENTS) * HASH_BYTES, 8),
)


class Unsealer(Protocol):
    """The holder of the recipient's private key: a vault, or a key in memory."""

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Raises AuthenticationError when `ciphertext` was not sealed for this key and `info`."""


@dataclass(frozen=True)
class EnvelopeInfo:
    """What an envelope contains, from whom and for whom; public, and bound to the payload.

    subject: what the payload is, in words that people read before they help to open it. names: the
    tensors inside, in order. sender, recipients: names of the roster. threshold: how many
    recipients together can open it.
    """

    subject: str
    sid: bytes
    step: int
    names: tuple[str, ...]
    sender: str
    recipients: tuple[str, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.recipients) <= MAX_RECIPIENTS:
            raise EnvelopeError(f"an envelope has 1 to {MAX_RECIPIENTS} recipients")
        if len(set(self.recipients)) != len(self.recipients):
            raise EnvelopeError("an envelope names a recipient twice")
        if not 1 <= self.threshold <= len(self.recipients):
            raise EnvelopeError("a threshold is 1 to the number of recipients")
        if self.threshold == 1 and len(self.recipients) > 1:
            raise EnvelopeError("recipients that can open it alone get envelopes of their own")
        for text in (self.sender, *self.recipients):
            if not 1 <= len(text.encode()) <= MAX_TEXT_BYTES:
                raise EnvelopeError(f"a sender or recipient has 1 to {MAX_TEXT_BYTES} bytes")
        if not 1 <= len(self.subject.encode()) <= MAX_SUBJECT_BYTES:
            raise EnvelopeError(f"a subject has 1 to {MAX_SUBJECT_BYTES} bytes")
        if len(self.sid) != HASH_BYTES or not 0 <= self.step < 1 << 64:
            raise EnvelopeError(f"a session id has {HASH_BYTES} bytes and a step fits 64 bits")
        if len(self.names) > MAX_NAMES or len(set(self.names)) != len(self.names):
            raise EnvelopeError(f"tensor names occur once each, at most {MAX_NAMES}")
        if any(not 1 <= len(name.encode()) <= MAX_NAME_BYTES for name in self.names):
            raise EnvelopeError(f"a tensor name has 1 to {MAX_NAME_BYTES} bytes")
        if len(pack_texts(self.names)) > MAX_NAMES_BYTES:
            raise EnvelopeError(f"the tensor names have more than {MAX_NAMES_BYTES} bytes")


def seal_envelope(
    payload: Buffer,
    *,
    info: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    signer: Signer,
) -> bytes:
    """Seal `payload` to the keys of `info.recipients`, in order, signed by `signer`, who is
    `info.sender`.

    Raises EnvelopeError if a recipient's key is invalid, or the payload exceeds 64 GiB.
    """
    view = memoryview(payload).cast("B")
    if len(view) > MAX_PAYLOAD_BYTES:
        raise EnvelopeError(f"a payload has at most {MAX_PAYLOAD_BYTES} bytes")
    file_key = container.new_file_key()
    shares = _shares(file_key, info)
    commitments = _commitments(file_key, shares)
    context = _context(info, recipient_keys, commitments, len(view))
    wrapped = []
    for place, (name, key, share) in enumerate(
        zip(info.recipients, recipient_keys, shares, strict=True), 1
    ):
        try:
            wrapped.append(key.seal(_share_info(context, place), share))
        except AuthenticationError as error:
            raise EnvelopeError(f"the key of {name}: {error}") from error
    header = Header(RESULT, context, _key_id(info), pack(*wrapped))
    chunks = seal_chunks(view, header.payload_key(file_key))
    signature = signer.sign(_PURPOSE, _statement(header, chunks))
    return b"".join((header.framed(), chunks, signature))


def read_info(blob: Buffer) -> EnvelopeInfo:
    """An envelope's header, NOT verified: only for finding the sender's card.

    Raises EnvelopeError when it is not an envelope.
    """
    return _split(blob).info


def named_keys(blob: Buffer, choices: Sequence[Sequence[RecipientKey]]) -> list[RecipientKey]:
    """For each recipient that one of its keys which the envelope names; the first where it names
    none of them.

    choices: in the order of the envelope's recipients. NOT verified: opening and checking verify
    that it is sealed to these keys. Raises EnvelopeError when it is not an envelope, or has another
    number of recipients.
    """
    digests = _split(blob).key_digests
    if len(digests) != len(choices):
        raise EnvelopeError("an envelope with another number of recipients")
    return [
        next((key for key in keys if key.digest == digest), keys[0])
        for digest, keys in zip(digests, choices, strict=True)
    ]


def open_envelope(
    blob: Buffer,
    *,
    expected: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    private: Unsealer,
    verifier: Verifier,
) -> bytes:
    """The payload of an envelope to us alone. `verifier` is that of `expected.sender`.

    1. The header parses, and is exactly as expected: subject, session, step, names, sender,
       recipients, threshold.
    2. It is sealed to the recipients' keys, and the file has the size that the header says.
    3. The sender signed all of it; nothing was decrypted so far.
    4. The share opens with our private key, under the same header, and is the one that the sender
       committed to.
    5. The shares give the key that the sender committed to.
    6. Every chunk verifies at its place, and the last one is the last.

    Raises EnvelopeError, which says which of these failed.
    """
    (me,) = expected.recipients
    share = open_share(  # 1 to 4
        blob,
        me=me,
        expected=expected,
        recipient_keys=recipient_keys,
        private=private,
        verifier=verifier,
    )
    return open_together(  # 5, 6
        blob,
        {me: share},
        expected=expected,
        recipient_keys=recipient_keys,
        verifier=verifier,
    )


def open_share(
    blob: Buffer,
    *,
    me: str,
    expected: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    private: Unsealer,
    verifier: Verifier,
) -> bytes:
    """The share of `me`: steps 1 to 4 of `open_envelope`. By itself it opens nothing if the
    threshold is above 1."""
    parts = _checked(blob, expected, recipient_keys, verifier)  # 1 to 3
    place = expected.recipients.index(me) + 1
    try:
        sealed = unpack(parts.header.wrapped_key, [MAX_SEALED_BYTES] * len(recipient_keys))
        share = private.unseal(_share_info(parts.header.context, place), sealed[place - 1])  # 4
    except (AuthenticationError, FrameError) as error:
        raise EnvelopeError(f"the file key does not open: {error}") from error
    if not _is_committed(parts.commitments, place, share):
        raise EnvelopeError(f"{expected.sender} sealed to {me} a share that it did not commit to")
    return share


def open_together(
    blob: Buffer,
    shares: Mapping[str, bytes],
    *,
    expected: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    verifier: Verifier,
) -> bytes:
    """The payload, by the shares of at least `threshold` recipients: steps 1 to 3, 5 and 6 of
    `open_envelope`. An error names whose share is wrong, or that the sender's are."""
    parts = _checked(blob, expected, recipient_keys, verifier)
    if len(shares) < expected.threshold:
        raise EnvelopeError(
            f"{expected.threshold} of {', '.join(expected.recipients)} open it together; there are "
            f"the shares of {len(shares)}"
        )
    places = {expected.recipients.index(name) + 1: share for name, share in shares.items()}
    for place, share in places.items():
        if not _is_committed(parts.commitments, place, share):
            name = expected.recipients[place - 1]
            raise EnvelopeError(f"the share of {name} is not the one that was sealed to {name}")
    some = dict(list(places.items())[: expected.threshold])
    try:
        file_key = combine_shares(some)  # 5
        committed = hmac.digest(file_key, _COMMITTED_KEY, "sha256")
        if not hmac.compare_digest(committed, parts.commitments[0]):
            raise EnvelopeError("they give another key than the one that was committed to")
    except EnvelopeError as error:
        raise EnvelopeError(f"the shares that {expected.sender} sealed: {error}") from error
    return open_chunks(parts.chunks, parts.header.payload_key(file_key))  # 6


def check_envelope(
    blob: Buffer,
    *,
    expected: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    verifier: Verifier,
) -> None:
    """Steps 1 to 3 of `open_envelope`, for nodes that carry an envelope but cannot open it."""
    _checked(blob, expected, recipient_keys, verifier)


def _checked(
    blob: Buffer,
    expected: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    verifier: Verifier,
) -> "_Parts":
    """The parts of an envelope that its sender signed and that is exactly what is expected."""
    parts = _split(blob)
    for item in fields(EnvelopeInfo):  # 1
        if getattr(parts.info, item.name) != getattr(expected, item.name):
            raise EnvelopeError(f"an envelope without the expected {item.name}")
    for name, said, key in zip(expected.recipients, parts.suites, recipient_keys, strict=True):
        if said != _suite(key):
            raise EnvelopeError(
                f"an envelope sealed with {said}; the card of {name} has a key for {_suite(key)}"
            )
    context = _context(expected, recipient_keys, parts.commitments, parts.payload_bytes)
    ours = Header(RESULT, context, _key_id(expected), parts.header.wrapped_key)
    if not hmac.compare_digest(ours.encoded(), parts.header.encoded()):  # 2
        raise EnvelopeError(f"an envelope for another key of {', '.join(expected.recipients)}")
    try:
        verifier.verify(_PURPOSE, _statement(ours, parts.chunks), bytes(parts.signature))  # 3
    except AuthenticationError as error:
        raise EnvelopeError(f"an envelope that {expected.sender} did not sign: {error}") from error
    return parts


@dataclass(frozen=True, repr=False)
class _Parts:
    suites: tuple[str, ...]
    info: EnvelopeInfo
    key_digests: tuple[bytes, ...]
    commitments: tuple[bytes, ...]
    header: Header
    payload_bytes: int
    chunks: memoryview
    signature: memoryview


def _split(blob: Buffer) -> _Parts:
    header, body = container.split(blob, RESULT)
    try:
        (
            *(suites, subject, sid, step, names, sender, recipients, threshold, keys, commitments),
            size,
        ) = unpack(header.context, _BOUNDS)
        said = unpack_texts(suites, MAX_RECIPIENTS, MAX_TEXT_BYTES)
        info = EnvelopeInfo(
            decode_text(subject),
            sid,
            int.from_bytes(step, "big"),
            unpack_texts(names, MAX_NAMES, MAX_NAME_BYTES),
            decode_text(sender),
            unpack_texts(recipients, MAX_RECIPIENTS, MAX_TEXT_BYTES),
            int.from_bytes(threshold, "big"),
        )
    except FrameError as error:
        raise EnvelopeError(f"a malformed envelope: {error}") from error
    count = len(info.recipients)
    lengths = (len(said), len(keys), len(commitments))
    if lengths != (count, count * HASH_BYTES, (1 + count) * HASH_BYTES):
        raise EnvelopeError(
            "a malformed envelope: its recipients' suites, keys or commitments are wrong"
        )
    payload_bytes = int.from_bytes(size, "big")
    length = sealed_bytes(payload_bytes)
    if len(body) != length + signatures.SIGNATURE_BYTES:
        raise EnvelopeError("an envelope that is cut off or has too many bytes")
    return _Parts(
        said,
        info,
        _digests(keys),
        _digests(commitments),
        header,
        payload_bytes,
        body[:length],
        body[length:],
    )


def _digests(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES))


def _context(
    info: EnvelopeInfo,
    recipient_keys: Sequence[RecipientKey],
    commitments: Sequence[bytes],
    payload_bytes: int,
) -> bytes:
    if len(recipient_keys) != len(info.recipients):
        raise EnvelopeError("an envelope needs one key for each recipient")
    return pack(
        pack_texts(_suite(key) for key in recipient_keys),
        info.subject.encode(),
        info.sid,
        info.step.to_bytes(8, "big"),
        pack_texts(info.names),
        info.sender.encode(),
        pack_texts(info.recipients),
        info.threshold.to_bytes(4, "big"),
        b"".join(key.digest for key in recipient_keys),
        b"".join(commitments),
        payload_bytes.to_bytes(8, "big"),
    )


def _shares(file_key: bytes, info: EnvelopeInfo) -> tuple[bytes, ...]:
    return split_secret(file_key, info.threshold, len(info.recipients))


def _commitments(file_key: bytes, shares: Sequence[bytes]) -> tuple[bytes, ...]:
    return (
        hmac.digest(file_key, _COMMITTED_KEY, "sha256"),
        *(_committed(place, share) for place, share in enumerate(shares, 1)),
    )


def _committed(place: int, share: bytes) -> bytes:
    return hmac.digest(share, _COMMITTED_SHARE + place.to_bytes(4, "big"), "sha256")


def _is_committed(commitments: Sequence[bytes], place: int, share: bytes) -> bool:
    return len(share) == SHARE_BYTES and hmac.compare_digest(
        _committed(place, share), commitments[place]
    )


def _share_info(context: bytes, place: int) -> bytes:
    return pack(container.wrap_info(RESULT, context), place.to_bytes(4, "big"))


def _suite(recipient_key: RecipientKey) -> str:
    return f"{recipient_key.suite}/{signatures.SUITE}"


def _key_id(info: EnvelopeInfo) -> str:
    return f"{info.threshold} of {len(info.recipients)}"


def _statement(header: Header, chunks: Buffer) -> bytes:
    return pack(sha256(header.encoded()).digest(), sha256(chunks).digest())
