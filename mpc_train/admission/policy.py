"""An organisation's policy: the rules of its nodes in a file of its own, signed by its people.

A policy is a TOML file: `[policy]` says which nodes it is for, its number and its dates, and
`[rules]` are those of `admission.rules`. Signatures are in a file beside it, `NAME.toml.sig`; each
covers the SHA-256 of the whole text, comments included. A node's own file says whose signatures it
requires and how many of them.

Guarantees that the rules of a node are what these people signed, for this node and this day, and
are not older than the newest policy that the node remembers. Leaves to the caller: to remember
(`node.policy`), and that the node's own file and roster are what the organisation wants: who can
write these decides whose signatures count.
"""

from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path

import msgspec

from mpc_train.admission.rules import Rules, rule_faults
from mpc_train.admission.statements import Cards, Statement, StatementError, sign
from mpc_train.base.strict_toml import all_at, clipped, load_toml
from mpc_train.errors import ConfigError, RefusedError
from protocols.names import NAME
from protocols.sealing.signatures import Signer

PURPOSE = "mpc-train/policy/1"
SUFFIX = ".sig"
MAX_SIGNATURES = 64
MAX_SIGNATURES_BYTES = 1 << 19
MAX_NUMBER = 2**53
"""Every reader of JSON knows a whole number up to here."""


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[policy]` of a policy file: for which nodes it is, and from when to when."""

    nodes: tuple[str, ...]
    """The nodes that it is for, by name: no other accepts it."""
    number: int
    """Counts up with each new version, from 1: a node that has accepted one refuses those before
    it, and another one of the same number."""
    valid_from: date
    """The first day (UTC) on which nodes accept it."""
    valid_until: date
    """The last day (UTC) on which nodes accept it, and sign jobs under it."""


class _PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    policy: Terms
    rules: Rules


class Signatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is beside a policy."""

    signatures: tuple[Statement, ...] = ()
    version: int = 1


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest policy that a node has accepted; number 0: none yet."""

    number: int = 0
    digest: str = ""
    version: int = 1


NONE_SEEN = Seen()


@dataclass(frozen=True)
class Policy:
    """A policy that was read; digest: SHA-256 of its text, hexadecimal."""

    path: Path
    digest: str
    terms: Terms
    rules: Rules

    def outside(self, day: date) -> list[tuple[str, str]]:
        """A code and a sentence that say so if the policy is not valid on this day."""
        terms = self.terms
        if day < terms.valid_from:
            return [("not-yet-valid", f"it is valid from {terms.valid_from}, and today is {day}")]
        if day > terms.valid_until:
            return [("expired", f"it was valid until {terms.valid_until}, and today is {day}")]
        return []

    @property
    def signatures(self) -> Path:
        """The file of its signatures."""
        return self.path.with_name(self.path.name + SUFFIX)


class PolicyRefusedError(RefusedError):
    """A policy that this node does not accept. codes: why, a word for each reason."""

    def __init__(self, message: str, codes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.codes = codes


def read_policy(path: Path) -> Policy:
    """Read a policy's text; raise ConfigError with all its faults. Nothing is verified."""
    parsed, text = load_toml(path, _PolicyFile, ConfigError)
    terms, faults = parsed.policy, rule_faults(parsed.rules)
    if not terms.nodes:
        faults.append(("policy.nodes", "at least one name is needed"))
    for name in terms.nodes:
        if not NAME.match(name):
            faults.append(("policy.nodes", f"{name!r} is not a name: use a-z, 0-9 and -"))
    if not 1 <= terms.number <= MAX_NUMBER:
        faults.append(("policy.number", f"between 1 and {MAX_NUMBER}"))
    if terms.valid_until < terms.valid_from:
        faults.append(("policy.valid_until", "is before valid_from"))
    if faults:
        raise all_at(ConfigError, path, text, faults)
    return Policy(path, sha256(text.encode()).hexdigest(), terms, parsed.rules)


def read_signatures(policy: Policy) -> tuple[Statement, ...]:
    """What is in the file of its signatures, none if there is no such file; raise ConfigError.
    Nothing is verified."""
    path = policy.signatures
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIGNATURES_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        found = msgspec.json.decode(content, type=Signatures)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: is not a file of signatures; remove it and sign the policy anew: mpc-train "
            "policy sign"
        ) from error
    if found.version != 1 or len(found.signatures) > MAX_SIGNATURES:
        raise ConfigError(
            f"{path}: has version {found.version} and {len(found.signatures)} signatures; this "
            f"program reads version 1 with at most {MAX_SIGNATURES}"
        )
    return found.signatures


def signed(policy: Policy, signer: str, day: date, keys: Signer) -> tuple[Statement, ...]:
    """The policy's signatures with one of `signer` more, which replaces an earlier one of theirs.

    Signatures of a text that has been changed since are left out: they count for nothing.
    """
    kept = [
        one
        for one in read_signatures(policy)
        if one.digest == policy.digest and one.signer != signer
    ]
    return (*kept, sign(PURPOSE, signer, bytes.fromhex(policy.digest), day, keys))


def check_policy(
    policy: Policy,
    me: str,
    day: date,
    signers: tuple[str, ...],
    least: int,
    cards: Cards,
    seen: Seen = NONE_SEEN,
) -> tuple[str, ...]:
    """Return who of `signers` signed the policy, if the node `me` may accept it on this day.

    least: how many of them must have. seen: the newest policy that the node has accepted. Raises
    PolicyRefusedError with everything that is wrong.
    """
    found = policy.outside(day)
    verified, faults = signers_of(policy, cards)
    valid = tuple(name for name in signers if name in verified)
    found += [(code, said) for name, code, said in faults if name in signers and name in cards]
    missing = [name for name in signers if name not in valid]
    if len(valid) < least:
        strangers = [name for name in verified if name not in signers]
        cardless = [name for name in missing if name not in cards]
        what = f"{len(valid)} of the {least} signatures that this node requires are there"
        what += f"; missing: {', '.join(missing)}"
        what += f"; {', '.join(strangers)} signed, but is not a signer here" if strangers else ""
        what += f"; the roster has no valid card of {', '.join(cardless)}" if cardless else ""
        found.append(("unsigned", what))
    if me not in policy.terms.nodes:
        names = ", ".join(policy.terms.nodes)
        found.append(("other-node", f"it is for {names}, and this node is {me}"))
    elif policy.rules.operators and me not in policy.rules.operators:
        names = ", ".join(policy.rules.operators)
        found.append(("operator", f"{me} is not one of its operators: {names}"))
    number = policy.terms.number
    if number < seen.number:
        what = f"its number is {number}, and this node has accepted number {seen.number}"
        found.append(("replayed", what))
    elif number == seen.number and policy.digest != seen.digest:
        what = f"this node has accepted another policy of number {number}; count up"
        found.append(("replayed", what))
    if found:
        raise PolicyRefusedError(
            f"the policy {policy.path} is refused: {'; '.join(said for _, said in found)}. Nothing "
            "was shared",
            tuple(dict.fromkeys(code for code, _ in found)),
        )
    return valid


def signers_of(policy: Policy, cards: Cards) -> tuple[tuple[str, ...], list[tuple[str, str, str]]]:
    """Whose signatures of the policy verify; and of each other one its signer, a code and a
    sentence."""
    valid: dict[str, None] = {}
    faults = []
    for one in read_signatures(policy):
        name = clipped(one.signer)
        if one.signer not in cards:
            faults.append(
                (name, "no-card", f"the roster has no valid card of {name}, who signed it")
            )
        elif one.digest != policy.digest:
            what = f"{name} signed another text: one of the two was altered since"
            faults.append((name, "altered", what))
        else:
            try:
                one.check(PURPOSE, cards[one.signer])
                valid[one.signer] = None
            except StatementError as error:
                faults.append((name, "altered", str(error)))
    return tuple(valid), faults
