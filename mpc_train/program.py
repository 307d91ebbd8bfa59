"""The training program that every node of a job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.role import Dealer, Evaluator, Role
from protocols.streams import Stream

if TYPE_CHECKING:
    from parties.session import Session

STREAM_LABEL = "mpc-train stream root v1"


def make_role(session: Session) -> Role:
    """This node's role in the arithmetic, with streams keyed from the session's handshakes."""
    names, dealer = session.roles.evaluators, session.roles.dealer
    if session.is_dealer:
        streams = [Stream(session.export(name, STREAM_LABEL)) for name in names]
        return Dealer(session.channel, names=names, streams=streams)
    return Evaluator(
        session.channel,
        index=names.index(session.me),
        names=names,
        dealer=dealer,
        stream=Stream(session.export(dealer, STREAM_LABEL)),
    )
