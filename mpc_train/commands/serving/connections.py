"""Connections between a client and a server of predictions: who they are, and what may wait.

The same connections as to a coordinator: CURVE between two keys of the roster, so that a stranger
reaches no parser. On each of them both ends agree on keys by the signed hybrid handshake, as nodes
of a run do (`parties.agreement.pair`), and everything else is sealed under these: also against a
quantum computer nobody learns which model is asked about, or asks in another's name. Rows and
answers are ciphertexts under the client's own key below that. These connections are not part of a
run: there is no contract and no resumption, and one that breaks ends its request.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from mpc_train.homomorphic.description import MAX_DESCRIPTION_BYTES
from mpc_train.homomorphic.messages import MAX_HEAD_BYTES, WINDOW, Parts
from mpc_train.homomorphic.parameters import MAX_OUTPUTS
from mpc_train.homomorphic.polynomials import MAX_BYTES
from mpc_train.homomorphic.service import Service
from parties.agreement.pair import (
    BUSY,
    ENDED,
    PART_OVERHEAD_BYTES,
    ClientEnd,
    Sealed,
    ServerEnd,
    refusal,
)
from parties.errors import PartiesError
from parties.keys.identity import Card
from parties.keys.vault import Vault
from parties.wire.zmq_transport import Accepted, CurveKeys, Dialled, Transport
from protocols.errors import PeerLostError, PeerTimeoutError

PURPOSE = "encrypted-questions"
"""What the handshake of such a connection says that it is for."""

MAX_PART_BYTES = max(MAX_BYTES, MAX_HEAD_BYTES, MAX_DESCRIPTION_BYTES) + PART_OVERHEAD_BYTES
"""A longer part of a message ends its connection."""

UNREAD = 2 * WINDOW
"""Messages of one connection that may wait for the server."""

QUEUED = 2 * MAX_OUTPUTS
CONNECT_S, ANSWER_S = 20.0, 120.0
TEND_S = 0.5


def curve_keys(vault: Vault) -> CurveKeys:
    """The keys of the connections of an identity."""
    return CurveKeys(vault.card.curve, vault.curve_secret())


class Port:
    """The server's port: hands each message to a `Service`. For one thread.

    allowed: by name, the cards of the clients. known: by name, the CURVE keys of others, who are
    refused by name. Raises PortInUseError and TransportError.
    """

    def __init__(
        self,
        vault: Vault,
        allowed: Mapping[str, Card],
        known: Mapping[str, bytes],
        address: str,
        on_refused: Callable[[str, int], None],
    ) -> None:
        keys = {name: card.curve for name, card in allowed.items()}
        self._transport = Transport(curve_keys(vault), keys, known, on_refused=on_refused)
        try:
            self._accepted = Accepted(
                self._transport, address, MAX_PART_BYTES, queued=QUEUED, unread=UNREAD
            )
        except PartiesError:
            self._transport.close()
            raise
        self._ends = ServerEnd(vault, allowed, PURPOSE, self._say)
        self.address = self._accepted.address

    def attend(self, service: Service) -> None:
        """Answer one message, if one comes soon, and look after connections."""
        accepted, ends = self._accepted, self._ends
        if accepted.waiting(TEND_S) and (message := accepted.receive()) is not None:
            route, parts = message
            name = accepted.names[route]
            # A message of more parts than two is malformed, however many they are.
            said = ends.take(route, name, [part.bytes for part in parts[:3]])
            for reply in service.on_message(route, name, said) if said is not None else ():
                sealed = ends.seal(route, reply)
                if sealed is not None and not self._say(route, sealed):
                    # What comes after a message that is missing would not open.
                    ends.end(route)
        accepted.update()
        while accepted.lost:
            route = accepted.lost.popleft()
            ends.forget(route)
            service.on_lost(route)
        while ends.ended:
            service.on_lost(ends.ended.popleft())
        service.forget_idle()

    def _say(self, route: bytes, parts: Parts) -> bool:
        """Whether it could be sent: a client may be gone, or read nothing."""
        with contextlib.suppress(PeerLostError):
            return self._accepted.send(route, parts, wait=False)
        return False

    def close(self) -> None:
        self._accepted.close(1.0)
        self._transport.close()

    def __enter__(self) -> "Port":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ServerLine:
    """A client's connection to a server, by the server's card.

    Raises TransportError, PeerTimeoutError, PeerLostError, and the errors of `ClientEnd`.
    """

    def __init__(self, vault: Vault, server: Card, address: str) -> None:
        self.server, self._address = server.name, address
        self._end = ClientEnd(vault, server, PURPOSE)
        self._transport = Transport(curve_keys(vault), {})
        try:
            self._dialled = Dialled(self._transport, address, server.curve, MAX_PART_BYTES)
        except PartiesError:
            self._transport.close()
            raise

    def connect(self, timeout_s: float = CONNECT_S) -> None:
        """Wait for the connection, and agree on its keys."""
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
        message: bytes | None = self._end.begin()
        while message is not None:
            self._send((message,))
            message = self._end.take(self._next(deadline, timeout_s)[0])

    def send(self, parts: Parts) -> None:
        self._send(self._sealed.seal(parts))

    def receive(self) -> Sequence[bytes]:
        parts = self._next(time.monotonic() + ANSWER_S, ANSWER_S)
        if len(parts) == 1 and parts[0] in (ENDED, BUSY):
            raise refusal(self.server, parts[0], during="the connection")
        return self._sealed.open(parts)

    @property
    def _sealed(self) -> Sealed:
        if self._end.sealed is None:
            raise PeerLostError(f"there is no connection to {self.server} yet")
        return self._end.sealed

    def _send(self, parts: Parts) -> None:
        self._check()
        if not self._dialled.send(parts):
            raise PeerTimeoutError(f"{self.server} takes nothing")

    def _next(self, deadline: float, patience_s: float) -> list[bytes]:
        while time.monotonic() < deadline:
            found = self._dialled.receive()
            if found is not None:
                return [part.bytes for part in found[:3]]
            self._check()
        raise PeerTimeoutError(f"{self.server} did not answer within {patience_s:.0f} s")

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
