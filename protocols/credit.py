"""What an evaluator tells the dealer: empty frames, so that it cannot run ahead without bound."""

from protocols.frames import LABEL

CORRECTION_BYTES = 1 << 18
"""The dealer sends corrections in frames of about 256 KiB."""
CREDIT_FRAMES = 16
"""An evaluator acknowledges every 16 correction frames with an empty frame."""
WINDOW_CREDITS = 4
"""The dealer runs at most 4 credits ahead of the slowest evaluator."""

DONE = LABEL.pack(b"done", 0, 0, 0)


def credit(frames: int) -> bytes:
    """The label that acknowledges `frames` correction frames."""
    return LABEL.pack(b"cred", 0, frames, 0)
