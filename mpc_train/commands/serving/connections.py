"""Connections between a client and a server of predictions: who they are, and what may wait.

The same connections as to a coordinator: CURVE between two keys of the roster, so both ends are
known and nobody else reads or alters what is said. They are not part of a run: there is no
contract, no session and no resumption, and a connection that breaks ends the request. CURVE is not
post-quantum. What that protects here is who asks and how often; rows and answers are ciphertexts
under the client's own key, on which no quantum algorithm is known to gain.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from mpc_train.homomorphic.description import MAX_DESCRIPTION_BYTES
from mpc_train.homomorphic.messages import MAX_HEAD_BYTES, WINDOW, Parts
from mpc_train.homomorphic.parameters import MAX_OUTPUTS
from mpc_train.homomorphic.polynomials import MAX_BYTES
from mpc_train.homomorphic.service import Service
from parties.errors import PartiesError
from parties.wire.zmq_transport import Accepted, CurveKeys, Dialled, Transport
from protocols.errors import PeerLostError, PeerTimeoutError

MAX_PART_BYTES = max(MAX_BYTES, MAX_HEAD_BYTES, MAX_DESCRIPTION_BYTES) + 1024
"""A longer part of a message ends its connection."""

UNREAD = 2 * WINDOW
"""Messages of one connection that may wait for the server."""

QUEUED = 2 * MAX_OUTPUTS
CONNECT_S, ANSWER_S = 20.0, 120.0
TEND_S = 0.5


class Port:
    """The server's port: hands each message to a `Service`. For one thread.

    allowed: by name, the CURVE keys of the clients. Raises PortInUseError and TransportError.
    """

    def __init__(
        self,
        keys: CurveKeys,
        allowed: Mapping[str, bytes],
        known: Mapping[str, bytes],
        address: str,
        on_refused: Callable[[str, int], None],
    ) -> None:
        self._transport = Transport(keys, allowed, known, on_refused=on_refused)
        try:
            self._accepted = Accepted(
                self._transport, address, MAX_PART_BYTES, queued=QUEUED, unread=UNREAD
            )
        except PartiesError:
            self._transport.close()
            raise
        self.address = self._accepted.address

    def attend(self, service: Service) -> None:
        """Answer one message, if one comes soon, and look after connections."""
        accepted = self._accepted
        if accepted.waiting(TEND_S) and (message := accepted.receive()) is not None:
            route, parts = message
            # A message of more parts than two is malformed, however many they are.
            given = [part.bytes for part in parts[:3]]
            for reply in service.on_message(route, accepted.names[route], given):
                self._send(service, route, reply)
        accepted.update()
        while accepted.lost:
            route = accepted.lost.popleft()
            service.on_lost(route)
            accepted.names.pop(route, None)
        service.forget_idle()

    def _send(self, service: Service, route: bytes, reply: Parts) -> None:
        sent = False
        with contextlib.suppress(PeerLostError):
            sent = self._accepted.send(route, reply, wait=False)
        if not sent:  # it is gone, or reads nothing
            service.on_lost(route)

    def close(self) -> None:
        self._accepted.close(1.0)
        self._transport.close()

    def __enter__(self) -> "Port":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ServerLine:
    """A client's connection to a server. Raises TransportError, PeerTimeoutError, PeerLostError."""

    def __init__(self, keys: CurveKeys, server: str, address: str, key: bytes) -> None:
        self.server, self._address = server, address
        self._transport = Transport(keys, {})
        try:
            self._dialled = Dialled(self._transport, address, key, MAX_PART_BYTES)
        except PartiesError:
            self._transport.close()
            raise

    def connect(self, timeout_s: float = CONNECT_S) -> None:
        """Wait for the connection."""
        deadline, dialled = time.monotonic() + timeout_s, self._dialled
        while not dialled.connected:
            dialled.update()
            if dialled.trouble is not None or time.monotonic() > deadline:
                why = dialled.trouble or f"nobody answers at {self._address}"
                raise PeerTimeoutError(
                    f"no connection to {self.server}: {why}; is mpc-train he serve running there, "
                    "and is this client named in its file?"
                )
            time.sleep(0.01)

    def send(self, parts: Parts) -> None:
        self._check()
        if not self._dialled.send(parts):
            raise PeerTimeoutError(f"{self.server} takes nothing")

    def receive(self) -> Sequence[bytes]:
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            found = self._dialled.receive()
            if found is not None:
                return [part.bytes for part in found[:3]]
            self._check()
        raise PeerTimeoutError(f"{self.server} did not answer within {ANSWER_S:.0f} s")

    def _check(self) -> None:
        self._dialled.update()
        if self._dialled.lost:
            raise PeerLostError(f"the connection to {self.server} broke; ask again")

    def close(self) -> None:
        self._dialled.close(1.0)
        self._transport.close()

    def __enter__(self) -> "ServerLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
