"""A script as the program that all nodes of a local run agree on and execute.

The contract's body is the script's text: all nodes sign the same text and execute what they signed.
The text shows what is opened (`get_plain_text`). An opened tensor passes the reveal gate under a
fresh mask, at most MAX_OPENINGS times, and all evaluators learn it. The dealer executes the same
lines and gets NaN. If the nodes take different paths through a script, the next frame raises
DesyncError.

A script is a program, and to run somebody else's script is to give it the machine. Therefore a node
started by `mpc-train party` refuses such a contract. Only `launch.py --script` starts nodes that
accept it, all on one machine, for the user whose script it is.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpc_train.errors import RefusedError, ScriptError
from mpc_train.run.memory import peak_rss_mb
from mpc_train.run.program import make_role
from parties.audit.entries import Kind
from parties.errors import PartiesError
from protocols.arrays import Words
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import MaskedTensor, attach, detach
from protocols.crypten_tensor.tensor import crypten as stock
from protocols.errors import DesyncError, ProtocolError, RangeError, RevealError
from protocols.functions.splines import constants_digest
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate

if TYPE_CHECKING:
    from parties.agreement.contract import Roles
    from parties.agreement.session import Session

MAX_SCRIPT_BYTES = 1 << 18
MAX_OPENINGS = 10_000
FRACTION_BITS = 20
_OPENED = "opening"
_OF_NAN = re.compile(r"\bnan\b|finite", re.IGNORECASE)
_PARTED = (
    "the nodes took different paths through the script, here or a few lines above. All nodes must "
    "execute the same operations on the same public values: draw random values after "
    "torch.manual_seed, and do not branch on a rank or on an opened value"
)
_AT_THE_DEALER = (
    "this is the dealer, which gets NaN in place of opened values: print such values, but do not "
    "round them to integers or combine them with shared tensors"
)


class ScriptProgram:
    """path: the script on this machine. opened: the number of tensors opened so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: bytes | None = None
        self.opened = 0

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        """Check that the contract holds this script; the digest of the public constants.

        Raises RefusedError, before anything is signed.
        """
        if body != read_script(self._path):
            raise RefusedError(f"{self._path}: is not the script that the contract holds")
        self._text = body
        return sha256(constants_digest(FRACTION_BITS)).digest()

    def run(self, session: Session) -> dict[str, object]:
        """Execute the script. Raises ScriptError with the script's own error and its line."""
        if self._text is None:
            raise RuntimeError("run before prepare")
        torch.set_num_threads(1)
        before = session.channel.bytes_sent
        role = make_role(session)
        outputs = frozenset(Output(f"{_OPENED} {n}", 0) for n in range(MAX_OPENINGS))
        gate = RevealGate(outputs, _ScriptLedger(session))

        def opened(value: Masked) -> Words | None:
            if self.opened == MAX_OPENINGS:
                raise RevealError(f"a script opens at most {MAX_OPENINGS:,} tensors")
            self.opened += 1
            return gate.to_everybody(f"{_OPENED} {self.opened - 1}", 0, value)

        dispatch.install()
        attach(role, FRACTION_BITS, opened)
        role.begin_step(0)
        try:
            with np.errstate(over="ignore"), _stepping(role):
                try:
                    execute(self._path, self._text)
                    role.close()
                except ScriptError as error:
                    if role.is_dealer and self.opened and _OF_NAN.search(str(error)):
                        raise ScriptError(f"{error}; {_AT_THE_DEALER}") from error
                    raise
                except DesyncError as error:
                    where = _line_of(self._path, error)
                    raise DesyncError(f"{where}: {_PARTED} ({error})") from error
        finally:
            detach()
        return {
            "steps": role.step,
            "rounds": role.rounds,
            "opened": self.opened,
            "bytes_sent": session.channel.bytes_sent - before,
            "peak_rss_mb": peak_rss_mb(),
        }

    def outcome(self) -> bytes:
        """A script has no result but what it opened, which its text says."""
        return sha256(self._text or b"").digest()

    def checkpoints(self) -> tuple[bytes, ...]:
        return ()

    def insists(self) -> bool:
        return False

    def leaving(self, body: bytes) -> tuple[str, ...]:
        return ()

    def check_outcome(self, outcome: bytes) -> None:
        """Raises ScriptError unless it is that of this text."""
        if outcome != self.outcome():
            raise ScriptError("the nodes state another outcome than that of this script")


class _ScriptLedger:
    """What a script opens, in the node's audit log; its text, which all have signed, lists it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def opening(self, output: Output, values: int) -> None:
        to = self._session.roles.evaluators
        self._session.record(
            Kind.OPENING, output=output.name, step=0, to=to, clause="script", values=values
        )

    def opened(self, output: Output, words: Words) -> None:
        digest = self._session.mac(words.astype("<i8").tobytes())
        self._session.record(Kind.OPENED, output=output.name, step=0, digest=digest)

    def refused(self, output: Output) -> None:
        self._session.record(Kind.OPENING_REFUSED, output=output.name, step=0)


def read_script(path: Path) -> bytes:
    """Return the script's text; raise ScriptError if it is missing, too long or not Python."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SCRIPT_BYTES + 1)
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(text) > MAX_SCRIPT_BYTES:
        raise ScriptError(f"{path}: longer than {MAX_SCRIPT_BYTES >> 10} KiB; is this the script?")
    try:
        compile(text, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise ScriptError(f"{where}: not Python: {getattr(error, 'msg', error)}") from error
    return text


def execute(path: Path, text: bytes) -> None:
    code = compile(text, str(path), "exec", dont_inherit=True)
    sys.argv = [str(path)]
    sys.path.insert(0, str(path.parent))
    # Its own communicator would tell every party that it is rank 0 of 1: all would share the values
    # of the first, and the result would look right.
    stock_init, stock.init = stock.init, _no_stock_init
    try:
        # The user's own script, on the user's own machine: see above.
        exec(code, {"__name__": "__main__", "__file__": str(path)})  # noqa: S102
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ScriptError(f"{path}: ended with exit status {error.code}") from error
    except ProtocolError as error:
        if isinstance(error, (RangeError, RevealError)):
            raise _placed(path, error) from error
        raise  # a peer's doing, not the script's
    except PartiesError:
        raise
    except Exception as error:
        raise _placed(path, error) from error
    finally:
        stock.init = stock_init


def _no_stock_init(*_: object, **__: object) -> None:
    raise RuntimeError(
        "this is the init of CrypTen itself, whose parties are not those of this run; write "
        "'from mpc_train.scripts import crypten' instead of 'import crypten'"
    )


def _placed(path: Path, error: BaseException) -> ScriptError:
    """The script's own error, with its line."""
    return ScriptError(f"{_line_of(path, error)}: {type(error).__name__}: {error}")


def _line_of(path: Path, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


@contextlib.contextmanager
def _stepping(role: Role) -> Iterator[None]:
    """Begin a step of the arithmetic at each backward pass: pending openings are settled, streams
    get new keys."""
    backward = MaskedTensor.backward

    def stepped(self: MaskedTensor, grad_input: Any = None, top_node: bool = True) -> Any:
        if top_node and self.requires_grad:
            role.begin_step(role.step + 1)
        return backward(self, grad_input, top_node)

    MaskedTensor.backward = stepped  # type: ignore[method-assign]
    try:
        yield
    finally:
        MaskedTensor.backward = backward  # type: ignore[method-assign]
