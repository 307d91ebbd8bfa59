"""All errors that the nodes raise, in one tree.

    PartiesError
    ├── IdentityError           an identity file is missing, damaged or of another version
    │   └── PassphraseError     the passphrase is wrong, empty or cannot be read
    ├── CardError               a public card is malformed or its signatures do not verify
    │   └── ExpiredError        a card, or this node's identity, is not valid now
    ├── RosterError             the roster lacks, repeats or contradicts a card
    │   └── RevokedError        a card was revoked, or is an old one that was succeeded
    ├── ContractError           the proposed contract is malformed, or its signatures do not fit
    │   └── TurnedAwayError     a service does not let this client in, now and later
    ├── ResumeError             the nodes have no checkpoint in common, and may not begin anew
    ├── PolicyError             the job breaks this node's own rules; nothing was shared
    ├── VaultError              an object of the vault is missing, damaged or not this node's
    │   └── KeyServiceError     the key service is away, refuses, or no longer has the key
    │       ├── WrappedKeyError a wrapped key was altered, or belongs to another object
    │       └── RetiredKeyError a key was asked for that has been destroyed, or is another's
    ├── AuditError              the audit log cannot be written or opened
    │   └── AuditTamperedError  an audit log or a checkpoint was altered, cut or forged
    ├── ProcessError            the platform does not protect this process as configured
    ├── TransportError          the network cannot be used as configured
    │   ├── PortInUseError      the address to listen on is taken
    │   └── ProxyError          the HTTP proxy gives no tunnel
    ├── ControlError            a control message is malformed, out of order or out of bounds
    └── AbortedError            the run was aborted by a named node, for a named reason

Other nodes may learn only `code`, one word; the message stays local. Neither ever contains a value,
a share, a key or a passphrase.
"""


class PartiesError(Exception):
    """Base of every error raised under `parties`."""

    code: str = "node"


class IdentityError(PartiesError):
    """An identity file is missing, damaged, altered or of another version."""

    code = "identity"


class PassphraseError(IdentityError):
    """The passphrase is wrong, empty or cannot be read."""

    code = "identity"


class CardError(PartiesError):
    """A public card is malformed, or its signatures do not verify."""

    code = "card"


class ExpiredError(CardError):
    """A card, or this node's own identity, is not valid any more, or not yet. about: whose, if a
    run ends because of it."""

    code = "expired"
    about: str | None = None


class RosterError(PartiesError):
    """The roster lacks a name, repeats one, or contradicts a card."""

    code = "roster"


class RevokedError(RosterError):
    """A card was revoked, or is an old one that has a successor. about: whose, if a run ends
    because of it."""

    code = "revoked"
    about: str | None = None


class ContractError(PartiesError):
    """A contract is malformed, or a signature under it does not fit."""

    code = "contract"


class TurnedAwayError(ContractError):
    """A service does not let this client in, and will not unless its roster or its file changes.
    reason_code: the coordinator's generic code; empty if it does not admit the client's key."""

    def __init__(self, message: str, reason_code: str = "") -> None:
        super().__init__(message)
        self.reason_code = reason_code


class ResumeError(PartiesError):
    """A run may only go on from a checkpoint, and there is none that all evaluators hold."""

    code = "resume"


class PolicyError(PartiesError):
    """The job breaks this node's own rules; nothing was shared."""

    code = "policy"


class VaultError(PartiesError):
    """An object of the vault is missing, damaged, another's, or of a newer version."""

    code = "vault"


class KeyServiceError(VaultError):
    """The service that keeps the vault's keys is away, refuses, or no longer has the key."""

    code = "key-service"


class WrappedKeyError(KeyServiceError):
    """A wrapped key does not verify: it was altered, or belongs to another object."""


class RetiredKeyError(KeyServiceError):
    """An object needs a key that has been destroyed, or that belongs to somebody else."""


class AuditError(PartiesError):
    """The audit log of this node cannot be written or opened; without it nothing is done."""

    code = "audit"


class AuditTamperedError(AuditError):
    """An audit log or a checkpoint is not what was written: altered, cut, reordered or forged."""


class ProcessError(PartiesError):
    """The platform, or the user's limits, do not protect this process as configured."""

    code = "config"


class TransportError(PartiesError):
    """The network cannot be used as configured."""

    code = "transport"


class PortInUseError(TransportError):
    """The address to listen on is taken by another process."""

    code = "port-in-use"


class ProxyError(TransportError):
    """The HTTP proxy gives no tunnel. final: whether trying again cannot help."""

    def __init__(self, text: str, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class ControlError(PartiesError):
    """A control message is malformed, out of order or out of bounds."""

    code = "control"


LOST = ("lost", "coordinator-lost")
"""Codes of nodes that did not abort but disappeared."""


class AbortedError(PartiesError):
    """The run was aborted: by which node, with which generic code, and because of whose card."""

    code = "aborted"

    def __init__(
        self, reason_code: str, by: str, about: str | None = None, returns_s: float = 0
    ) -> None:
        lost = reason_code in LOST
        whose = f", the card of {about}" if about else ""
        super().__init__(
            f"{by} was lost" if lost else f"the run was aborted by {by}: {reason_code}{whose}"
        )
        self.reason_code = reason_code
        self.by = by
        self.about = about
        self.returns_s = returns_s
        """How long all nodes may take to connect again, for another session of the same run; 0: the
        run is over."""
