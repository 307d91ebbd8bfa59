"""What a node reports about the addresses that it dials: the coordinator's, then its neighbours'.

ZeroMQ dials forever without a report. This module also tries the same addresses by plain TCP
(`reach`), so that a person learns within seconds what is wrong and what to check.
"""

import time
from collections.abc import Mapping
from typing import Protocol

from parties.errors import TransportError
from parties.nodes.coordinator import Event
from parties.stop import StopFlag
from parties.wire.data_plane import choose_route
from parties.wire.proxy import Proxy
from parties.wire.reach import Lookout, try_all

HINT_S = 2.0
"""A coordinator that starts at the same time as its nodes may take this long."""

SPOKEN_S = 6.0
"""If a ZeroMQ peer answers, the connection is made in less time than this."""

SLICE_S = 0.05


class Connecting(Protocol):
    """A pending connection to the coordinator."""

    @property
    def state(self) -> str:
        """'connecting' until it is established."""

    @property
    def trouble(self) -> str | None:
        """A text that says why the other end refuses this node; None if nothing is known."""


def await_connection(
    connection: Connecting,
    address: str,
    limit_s: float,
    stop: StopFlag,
    on_event: Event,
    proxy: Proxy | None = None,
) -> None:
    """Wait until the coordinator at `address` is connected.

    Meanwhile reports each problem once: the event 'waiting' with address, trouble and the limit.
    Raises TransportError with the same text after `limit_s`, or as soon as waiting cannot help.
    """
    started = time.monotonic()
    said = ""
    with Lookout(address, proxy=proxy) as lookout:
        while connection.state == "connecting":
            stop.check("connecting to the coordinator")
            waited = time.monotonic() - started
            refusal, trouble = connection.trouble, lookout.trouble
            if refusal is not None and (waited > HINT_S or "refuses" in refusal):
                raise TransportError(refusal)
            if trouble is not None:
                why = trouble.text
            elif lookout.tried and waited > SPOKEN_S:
                why = "a ZeroMQ program there accepts nobody: check the port"
            else:
                why = ""
            final = trouble is not None and trouble.final
            # If the limit is short, wait for the first try: it knows what is wrong.
            over = waited > limit_s and (lookout.tried or waited > limit_s + SPOKEN_S)
            if final or over:
                limit = "" if final else f" within {limit_s:.0f} s"
                raise TransportError(
                    f"no coordinator answered at {address}{limit}: "
                    f"{why or 'is it running, and is the address right?'}"
                )
            if why and why != said and waited > HINT_S:
                said = why
                on_event("waiting", {"address": address, "trouble": why, "limit_s": limit_s})
            time.sleep(SLICE_S)


def try_neighbours(
    me: str,
    neighbours: tuple[str, ...],
    listens: Mapping[str, str | None],
    timeout_s: float,
    on_event: Event,
    proxy: Proxy | None = None,
) -> tuple[str, ...]:
    """The neighbours that `me` should dial but cannot reach; their frames go through the
    coordinator.

    listens: where each node can be dialled, `me` included. Takes `timeout_s` at most; each failure
    is an event 'unreachable' with node, peer, address and trouble.
    """
    routes = {peer: choose_route(me, peer, listens) for peer in neighbours}
    dialled = {peer: route.address for peer, route in routes.items() if route.kind == "dial"}
    troubles = try_all(dialled, timeout_s, proxy)
    for peer, trouble in troubles.items():
        fields = {"node": me, "peer": peer, "address": dialled[peer], "trouble": trouble.text}
        on_event("unreachable", fields)
    return tuple(sorted(troubles))
