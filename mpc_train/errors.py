"""All errors that `mpc_train` raises, and the exit status of a command for each.

    TrainError
    ├── JobError        a job file is wrong: names file, line, key and what to write
    ├── ConfigError     a node's own file is wrong
    │   └── PortTakenError  an address to listen on is in use
    ├── DataError       a data file is wrong: names file, line and column, never a value
    ├── LinkageError    owners' records do not meet as the job asks: too few, or in several tables
    ├── OwnersError     too few owners of a federated round have sent an update
    ├── ModelError      a model that cannot be trained over shares
    ├── ArtifactError   a sealed model cannot be opened: a piece is missing, foreign or altered
    ├── ScriptError     a script is wrong, or raised an error: names its line
    ├── RefusedError    this node's own rules forbid the job
    ├── QueryError      a question to a model, or its answer, is malformed or out of bounds
    │   ├── ParametersError     parameters that are weak, or not those of this release
    │   ├── CiphertextError     a ciphertext or key of another size, scale or key
    │   ├── QueryRefusedError   it is not answered: not allowed, no rows left, busy
    │   │   └── QueryLostError  its connection was lost before its answer came
    │   └── UnansweredError     a table was answered in part; its cause says why
    └── NodeFailedError a node of a local run ended with an error, which this error repeats

Other nodes may learn only `code`, one word; the message stays on this machine.

Exit status of `mpc-train`:

    0 done                                     6 refused by the rules or by a contract check
    1 internal error                           7 network: port in use, unreachable, nodes missing
    2 wrong use of the command line            8 another node was lost, or stopped the run
    3 a job or configuration file is wrong     9 authentication or protocol failure
    4 a data file is wrong                    10 a value is out of range
    5 identity, card, roster, vault, log     130 interrupted

and of `mpc-train doctor`, the lowest of those that apply: 11 a problem of this machine, 12 of the
network between the two sides, 13 the two sides do not fit (keys, releases, clocks).
"""


class TrainError(Exception):
    """Base of every error raised under `mpc_train`."""

    code: str = "train"


class JobError(TrainError):
    """A job file is malformed or contradicts itself."""

    code = "job"


class ConfigError(TrainError):
    """A node's configuration file is malformed or names things that do not exist."""

    code = "config"


class PortTakenError(ConfigError):
    """An address to listen on is taken by another process."""

    code = "port-in-use"


class DataError(TrainError):
    """An owner's data file does not fit the job."""

    code = "data"


class LinkageError(TrainError):
    """Owners have too few records in common, or too many duplicates."""

    code = "linkage"


class OwnersError(TrainError):
    """Fewer owners than the job asks for have sent an update by the deadline of a round."""

    code = "owners"


class ModelError(TrainError):
    """The job asks for a model that cannot be trained over shares."""

    code = "model"


class ArtifactError(TrainError):
    """A sealed model is incomplete, altered, or not for this recipient."""

    code = "artifact"


class ScriptError(TrainError):
    """A script for `launch.py --script` cannot be run, or raised an error."""

    code = "script"


class RefusedError(TrainError):
    """This node's own rules forbid the job."""

    code = "policy"


class QueryError(TrainError):
    """A question to a model, or its answer, is malformed or out of bounds; code: what the other
    side is told, a word of `homomorphic.messages.MEANINGS` or of `serving.offered.REFUSALS`."""

    def __init__(self, message: str, code: str = "malformed") -> None:
        super().__init__(message)
        self.code = code


class ParametersError(QueryError):
    """Parameters of homomorphic encryption that are weak, or not those of this release."""


class CiphertextError(QueryError):
    """A ciphertext or a public key has another size, scale or key, or numbers out of range."""


class QueryRefusedError(QueryError):
    """No question of this client is answered now."""


class QueryLostError(QueryRefusedError):
    """A connection was lost, and nobody knows whether its question was answered: it is asked again
    under the same name."""


class UnansweredError(QueryError):
    """The rows of a table were answered up to one. Its cause says why, and is its exit status."""


class NodeFailedError(TrainError):
    """A node of a local run ended with an error: its name, its code and its exit status."""

    def __init__(self, kind: str, code: str, message: str, status: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.status = status


EXIT_STATUS: dict[str, int] = {
    "JobError": 3,
    "ConfigError": 3,
    "PortTakenError": 7,
    "ModelError": 3,
    "ScriptError": 3,
    "ProcessError": 3,
    "DataError": 4,
    "LinkageError": 4,
    "OwnersError": 8,
    "IdentityError": 5,
    "CardError": 5,
    "RosterError": 5,
    "RevokedError": 6,
    "VaultError": 5,
    "AuditTamperedError": 9,
    "AuditError": 5,
    "RefusedError": 6,
    "QueryError": 9,
    "QueryRefusedError": 6,
    "PolicyError": 6,
    "ContractError": 6,
    "ResumeError": 6,
    "TransportError": 7,
    "PeerTimeoutError": 7,
    "PeerLostError": 8,
    "AbortedError": 8,
    "ChannelError": 8,
    "InterruptedRunError": 130,
    "KeyboardInterrupt": 130,
    "RangeError": 10,
    "ArtifactError": 9,
    "ProtocolError": 9,
    "ControlError": 9,
}
"""Exit status by class name.

By name, so that this module does not have to import `parties` or `protocols` for their errors.
"""

DOCTOR_STATUS: dict[str, int] = {"machine": 11, "network": 12, "other": 13}
"""Exit status of `mpc-train doctor` by where the remedy lies."""

REASONS: dict[str, str] = {
    "policy": "its own rules forbid the job, or nobody there agreed to it; its own error says "
    "which",
    "contract": "the contract, the cards or the constants are not the same everywhere; its own "
    "error says what differs",
    "roster": "it lacks a card, or has a different one; compare fingerprints",
    "revoked": "it does not accept that card any more; its own error says since when",
    "card": "that card is malformed, or does not go on from the one that is known there",
    "expired": "that card is not valid any more; its owner makes new keys (identity rotate)",
    "script": "the script raised an error there; its own error says at which line",
    "data": "its data do not fit the job; its own error says where",
    "config": "its own file is wrong; its own error says where",
    "linkage": "owners have too few records in common, or too many; its own error says which",
    "owners": "too few owners sent an update in time; its own error says which did",
    "job": "it cannot run this job",
    "peer-timeout": "a node did not connect or answer in time; its own error says which",
    "lost": "its process ended, or its machine or network fell silent",
    "peer-lost": "its connection to another node broke; its own error says to which",
    "coordinator-lost": "the connection to it broke, or its process ended",
    "diverged": "a value left the ring's range: training diverges, and nobody gets a result; lower "
    "the learning rate, scale features and label, or clip gradients",
    "interrupted": "it was stopped by hand",
    "authentication": "a frame or a signature did not verify there",
    "handshake": "two nodes could not agree on keys",
    "point": "it received a malformed list of masked records",
    "control": "it sent a malformed message",
    "version": "its release differs from this node's; run the same everywhere",
    "already-connected": "a node of this name is connected already; is it running twice?",
    "audit": "its audit log cannot be written, or was altered; its own error says which",
    "resume": "the nodes hold no checkpoint in common; its own error says which do",
    "internal": "an unexpected error; its own log says where",
}
"""The meaning of the code that a node sends to the others when it stops the run."""


def explain(error: BaseException) -> str:
    """Return the error's message; after another node's code comes its meaning."""
    meaning = REASONS.get(str(getattr(error, "reason_code", "")))
    return f"{error} ({meaning})" if meaning else str(error)


def classify(error: BaseException) -> tuple[str, str, int]:
    """Return the error's name, its code (the word that others may see) and its exit status."""
    if isinstance(error, NodeFailedError):
        return error.kind, error.code, error.status
    if isinstance(error, UnansweredError) and error.__cause__ is not None:
        return classify(error.__cause__)
    name = type(error).__name__
    for kind in type(error).__mro__:
        status = EXIT_STATUS.get(kind.__name__)
        if status is not None:
            fallback = "interrupted" if status == 130 else "internal"
            return name, str(getattr(error, "code", fallback)), status
    return name, "internal", 1
