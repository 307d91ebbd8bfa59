"""All errors that the protocols raise, in one tree.

    ProtocolError
    ├── RangeError              a value, scale or bound does not fit the ring
    │   └── DivergedError       values left the ring's range, as every node was told
    ├── MaskReuseError          one mask, stream position or record counter asked for twice
    ├── DesyncError             two nodes met in different operations
    ├── FrameError              a frame is malformed, too long or too short
    ├── AuthenticationError     a tag, a MAC or a signature does not verify
    ├── HandshakeError          two nodes could not agree on a session
    ├── EnvelopeError           a sealed file is damaged, foreign or not for this recipient
    ├── PointError              a list of masked items holds an invalid point, or one point twice
    ├── RevealError             something asked to be revealed that the job does not list
    └── ChannelError
        ├── PeerLostError       the peer closed or its connection broke
        ├── PeerTimeoutError    the peer sent nothing within the time allowed
        └── InterruptedRunError this node was asked to stop (Ctrl-C, or the run was aborted)

Other nodes may learn only `code`, one word; the message stays local. Neither ever contains a value,
a share or a key.
"""


class ProtocolError(Exception):
    """Base of every error raised under `protocols`."""

    code: str = "protocol"


class RangeError(ProtocolError):
    """A value, scale or bound does not fit the ring Z_2^64 at the job's scale."""

    code = "range"


class DivergedError(RangeError):
    """Values left the ring's range while they were computed, as every node of the job was told."""

    code = "diverged"


class MaskReuseError(ProtocolError):
    """One mask, stream position or record counter was asked for a second time."""

    code = "mask-reuse"


class DesyncError(ProtocolError):
    """Two nodes met in different operations: their programs are not the same."""

    code = "desync"


class FrameError(ProtocolError):
    """A frame is malformed, or longer or shorter than the job says."""

    code = "frame"


class AuthenticationError(ProtocolError):
    """A tag, a MAC or a signature does not verify; the session is over."""

    code = "authentication"


class HandshakeError(ProtocolError):
    """Two nodes could not agree on a session."""

    code = "handshake"


class EnvelopeError(ProtocolError):
    """A sealed file is damaged, foreign, or not for this recipient."""

    code = "envelope"


class PointError(ProtocolError):
    """A list of masked items holds an invalid point of the curve, or one point twice."""

    code = "point"


class RevealError(ProtocolError):
    """Something was to be revealed that the signed job does not list."""

    code = "reveal"


class ChannelError(ProtocolError):
    """A peer cannot be reached any more."""

    code = "channel"


class PeerLostError(ChannelError):
    """The peer closed, or its connection broke."""

    code = "peer-lost"


class PeerTimeoutError(ChannelError):
    """The peer sent nothing within the time allowed."""

    code = "peer-timeout"


class InterruptedRunError(ChannelError):
    """This node was asked to stop: Ctrl-C, or the run was aborted elsewhere."""

    code = "interrupted"
