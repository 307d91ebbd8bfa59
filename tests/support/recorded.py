"""`mpc-train` that writes down its own secrets, so that a test can search for them elsewhere.

python recorded.py FILE ARGUMENTS…: appends to FILE every 8-byte word of the private keys, the
record keys, the roots of streams, the masks drawn from them, and the plaintext of every frame
(shares of openings, corrections, Δ of inputs). Passphrases are the test's own. What it says on the
control plane goes to FILE.told, each message after its length in four bytes. FILE.roots gets every
root of a stream and every key that seals records, 32 bytes each: none may come twice. A pad that an
owner takes off a sum of federated rounds is none of these: that hides nothing.

With STEP_S in its environment an evaluator waits for so many seconds at each step.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEP_S = "RECORDED_STEP_S"
MAX_BYTES = 1 << 12
"""Of one frame or draw: enough to find it again, and not the whole training."""


def main() -> None:
    target = open(sys.argv[1], "ab", buffering=0)  # noqa: SIM115 - open until the process ends
    sys.path.insert(0, str(ROOT))

    def record(secret: Any) -> None:
        data = bytes(memoryview(secret).cast("B")[:MAX_BYTES])
        target.write(data[: len(data) & ~7])

    def after(owner: Any, name: str, take: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            secret = take(result, *arguments)
            if secret is not None:
                record(secret)
            return result

        setattr(owner, name, wrapped)

    from mpc_train.federated.rounds import messages
    from parties.agreement import control
    from parties.keys.identity import IdentityKeys
    from parties.wire.secure_channel import SecureChannel
    from protocols.roles.streams import Stream
    from protocols.sealing.record import RecordOpener, RecordSealer

    told = open(f"{sys.argv[1]}.told", "ab", buffering=0)  # noqa: SIM115 - as above

    def tell(said: bytes, message: Any) -> None:
        told.write(len(said).to_bytes(4, "big") + said)

    once = open(f"{sys.argv[1]}.roots", "ab", buffering=0)  # noqa: SIM115 - as above

    def used(secret: bytes) -> bytes:
        assert len(secret) == 32
        once.write(secret)
        return secret

    lift, lifting = messages.lift, set[int]()
    """The threads that take a pad off."""

    def lifted(pad: bytes, total: Any) -> None:
        lifting.add(get_ident())
        lift(pad, total)
        lifting.discard(get_ident())

    messages.lift = lifted
    after(control, "encode", tell)
    after(IdentityKeys, "__init__", lambda _, keys, private, kind: private)
    after(RecordSealer, "__init__", lambda _, sealer, key, context: used(key))
    after(RecordOpener, "__init__", lambda _, opener, key, context: key)
    after(
        Stream, "__init__", lambda _, stream, root: root if get_ident() in lifting else used(root)
    )
    after(Stream, "octets", lambda drawn, stream, count: drawn)
    # A session's id, a checkpoint's position and the outline of a model are public.
    after(
        SecureChannel,
        "send",
        lambda _, channel, peer, label, payload: (
            None if label in (b"confirm", b"resume from", b"model outline") else payload
        ),
    )
    if STEP_S in os.environ:
        from protocols.roles.evaluator import Evaluator

        after(Evaluator, "begin_step", lambda *_: time.sleep(float(os.environ[STEP_S])))
    sys.argv = ["mpc-train", *sys.argv[2:]]
    from mpc_train.cli import main as command

    command()


if __name__ == "__main__":
    main()
