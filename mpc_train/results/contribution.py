"""Recipients open a model together: each contributes its shares of the file keys to one of them.

With `reveal.threshold` = k no recipient opens a sealed model alone. A recipient who agrees that
another opens it unwraps its own share of each evaluator's file key and seals these to that opener,
signed. Guarantees that a contribution helps with one sealed file and one opener only, and that a
wrong, foreign or doubled one is refused with the name of its sender. Whoever contributes learns
nothing of the model; the opener, with k - 1 contributions and its own shares, learns all of it.

    contribution   an envelope (`protocols.sealing.envelope`) from the contributor to the opener,
                   session and step those of the model, no tensors,
                   subject "a contribution to open " ‖ digest of the sealed file, hexadecimal
    payload        pack(evaluator, share, evaluator, share, …), sorted by evaluator
    digest         SHA-256 of pack("mpc-train/bundle/1", SHA-256 of each envelope, sorted)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from mpc_train.errors import ArtifactError
from protocols.canonical import decode_text, pack, unpack_list
from protocols.errors import EnvelopeError, FrameError
from protocols.sealing.bundle import unpack_bundle
from protocols.sealing.envelope import (
    MAX_NAME_BYTES,
    MAX_RECIPIENTS,
    EnvelopeInfo,
    Unsealer,
    named_keys,
    open_envelope,
    open_share,
    read_info,
    seal_envelope,
)
from protocols.sealing.recipient_keys import RecipientKey
from protocols.sealing.signatures import Signer, Verifier

MAX_CONTRIBUTION_BYTES = 1 << 18
_SUBJECT = "a contribution to open "

Shares = dict[str, dict[str, bytes]]
"""By evaluator, then by recipient, a share of the key of the evaluator's envelope."""


class PublicCard(Protocol):
    """The part of a card that opening needs. recipient_keys: the present one first; envelopes of
    one run may be sealed to different ones, if the recipient's keys were rotated at its end."""

    @property
    def recipient_key(self) -> RecipientKey: ...

    @property
    def recipient_keys(self) -> tuple[RecipientKey, ...]: ...

    def verifier(self) -> Verifier: ...


class Holder(Signer, Unsealer, Protocol):
    """A recipient's private keys."""


@dataclass(frozen=True)
class Consent:
    """What a contribution agrees to. about: what the sealed file is, with the job's digest."""

    about: str
    sid: str
    opener: str
    threshold: int
    recipients: tuple[str, ...]


def keys_of(
    names: Sequence[str], cards: Mapping[str, PublicCard], what: str, sealed: bytes | None = None
) -> list[RecipientKey]:
    """The recipient keys of these names; ArtifactError if one has no card. what: their part.

    sealed: an envelope to them; then the keys, perhaps older ones, that it names.
    """
    missing = [name for name in names if name not in cards]
    if missing:
        raise ArtifactError(f"no card of {', '.join(missing)}, {what}, in the roster; add it")
    if sealed is not None:
        return named_keys(sealed, [cards[name].recipient_keys for name in names])
    return [cards[name].recipient_key for name in names]


def contribute(
    sealed: bytes,
    *,
    me: str,
    private: Holder,
    cards: Mapping[str, PublicCard],
    opener: str,
    subject: str | None = None,
) -> tuple[bytes, Consent]:
    """This recipient's contribution for `opener`, and what it agrees to with it.

    subject: what the sealed file must say that it is; None: anything. Raises ArtifactError and
    EnvelopeError, which say what does not fit; nothing is unwrapped for a file that fails.
    """
    envelopes = unpack_bundle(sealed).envelopes
    first = read_info(envelopes[0])
    if first.threshold == 1:
        raise ArtifactError(
            f"{', '.join(first.recipients)} can open this file without contributions of others"
        )
    _check_group(envelopes)
    for name, part in ((me, "this identity"), (opener, "the opener")):
        if name not in first.recipients:
            raise ArtifactError(
                f"{name}, {part}, is not a recipient; they are {', '.join(first.recipients)}"
            )
    if opener == me:
        raise ArtifactError(
            f"{me} cannot contribute to itself; name another recipient, or open the file with "
            "the contributions of others"
        )
    if subject is not None and subject != first.subject:
        raise ArtifactError(f"the file contains {first.subject}; expected {subject}")
    shares = own_shares(envelopes, me, private, cards)
    fields = [part for name in sorted(shares) for part in (name.encode(), shares[name])]
    made = seal_envelope(
        pack(*fields),
        info=_expected(envelopes, first, me, opener),
        recipient_keys=keys_of([opener], cards, "the opener"),
        signer=private,
    )
    about = Consent(first.subject, first.sid.hex(), opener, first.threshold, first.recipients)
    return made, about


def own_shares(
    envelopes: Sequence[bytes], me: str, private: Unsealer, cards: Mapping[str, PublicCard]
) -> dict[str, bytes]:
    """By evaluator, the share of `me`. Raises ArtifactError for two envelopes of one evaluator."""
    found: dict[str, bytes] = {}
    for envelope in envelopes:
        info = read_info(envelope)
        if info.sender in found:
            raise ArtifactError(f"two envelopes of {info.sender}; remove one")
        keys = keys_of(info.recipients, cards, "a recipient", envelope)
        keys_of([info.sender], cards, "an evaluator")
        found[info.sender] = open_share(
            envelope,
            me=me,
            expected=info,
            recipient_keys=keys,
            private=private,
            verifier=cards[info.sender].verifier(),
        )
    return found


def contributed(
    contributions: Sequence[bytes],
    envelopes: Sequence[bytes],
    *,
    me: str,
    private: Unsealer,
    cards: Mapping[str, PublicCard],
) -> Shares:
    """The shares that other recipients contribute for `me` to open these envelopes.

    1. The envelopes are of one model. Each contribution is from another recipient of them, and no
       two are from the same.
    2. It is for `me` and for these envelopes, and its sender signed it.
    3. It has one share for each evaluator.

    Whether a share is right is checked when it is used. Raises ArtifactError.
    """
    first = read_info(envelopes[0])
    if contributions:
        _check_group(envelopes)  # 1
    senders = sorted({read_info(envelope).sender for envelope in envelopes})
    found: Shares = {sender: {} for sender in senders}
    seen: set[str] = set()
    for blob in contributions:
        try:
            claimed = read_info(blob)
        except EnvelopeError as error:
            raise ArtifactError(f"not a contribution: {error}") from error
        name = claimed.sender
        if name == me or name not in first.recipients:  # 1
            raise ArtifactError(
                f"a contribution of {name!r}; contributions come from the other recipients: "
                + ", ".join(each for each in first.recipients if each != me)
            )
        if name in seen:
            raise ArtifactError(f"two contributions of {name}; give one of each recipient")
        seen.add(name)
        if claimed.recipients != (me,):  # 2
            raise ArtifactError(
                f"the contribution of {name} is for {', '.join(claimed.recipients)} to open it, "
                f"not for {me}"
            )
        expected = _expected(envelopes, first, name, me)
        if (claimed.subject, claimed.sid) != (expected.subject, expected.sid):
            raise ArtifactError(f"the contribution of {name} is to another sealed file")
        try:
            payload = open_envelope(
                blob,
                expected=expected,
                recipient_keys=keys_of([me], cards, "the opener", blob),
                private=private,
                verifier=_verifier(name, cards),
            )
            fields = unpack_list(payload, 2 * MAX_RECIPIENTS, MAX_NAME_BYTES)
            shares = {decode_text(who): share for who, share in _pairs(fields)}
        except (EnvelopeError, FrameError) as error:
            raise ArtifactError(f"the contribution of {name}: {error}") from error
        if sorted(shares) != senders or len(fields) != 2 * len(senders):  # 3
            raise ArtifactError(
                f"the contribution of {name} does not have one share for each evaluator"
            )
        for sender, share in shares.items():
            found[sender][name] = share
    return found


def _pairs(fields: list[bytes]) -> list[tuple[bytes, bytes]]:
    if len(fields) % 2:
        raise FrameError("a share is missing")
    return list(zip(fields[::2], fields[1::2], strict=True))


def _verifier(name: str, cards: Mapping[str, PublicCard]) -> Verifier:
    keys_of([name], cards, "a recipient")
    return cards[name].verifier()


def _group(info: EnvelopeInfo) -> tuple[object, ...]:
    return info.subject, info.sid, info.step, info.recipients, info.threshold


def _check_group(envelopes: Sequence[bytes]) -> None:
    """Raise ArtifactError unless the envelopes are of one model, to the same recipients."""
    if len({_group(read_info(envelope)) for envelope in envelopes}) > 1:
        raise ArtifactError("the envelopes in this file are of different models")


def _expected(
    envelopes: Sequence[bytes], first: EnvelopeInfo, sender: str, opener: str
) -> EnvelopeInfo:
    digests = sorted(sha256(envelope).digest() for envelope in envelopes)
    digest = sha256(pack(b"mpc-train/bundle/1", *digests)).hexdigest()
    return EnvelopeInfo(_SUBJECT + digest, first.sid, first.step, (), sender, (opener,))
