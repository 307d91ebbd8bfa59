"""The server of `mpc-train he serve`: opens the models once, then answers until interrupted."""

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from mpc_train.commands.common import enter
from mpc_train.commands.serving.connections import Port
from mpc_train.errors import ModelError, QueryError
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.evaluation import Weights
from mpc_train.homomorphic.parameters import SLOTS
from mpc_train.homomorphic.seal import Seal
from mpc_train.homomorphic.service import Served, Service
from mpc_train.homomorphic.serving_file import ModelPlace, ServingFile
from mpc_train.node.logbook import logbook
from mpc_train.node.storage import NodeVault, kept_model
from mpc_train.results.predicting import Predictor, load_predictor
from mpc_train.run.node_config import load_node_config
from mpc_train.serving.allowance import Allowance
from parties.audit.entries import Kind, Value
from parties.audit.log import AuditLog
from parties.errors import ExpiredError
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.stop import sigterm_interrupts
from protocols.arrays import Reals

log = logging.getLogger(__name__)

Ready = Callable[[str, list[str], tuple[str, ...]], None]


def serve(
    config: Path,
    file: ServingFile,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    ready: Ready,
) -> int:
    """Answer until interrupted; the number of requests that were answered.

    ready(address, models, clients) is called once others can connect. The clients' cards are those
    of the roster at the start.
    """
    seal = Seal()
    node = load_node_config(config)
    identity, roster = enter(node.place, node.audit, passphrase_file, passphrase_fd)
    lifetime.check_own(identity.card, lifetime.now())
    allowed, known = _clients(roster, node.place.name, file.clients)
    safe = NodeVault(node.vault, node.place.name, identity)
    served = {name: _served(seal, safe, name, place) for name, place in file.models.items()}
    counts = Allowance(node.place.home / f"{node.place.name}.he-quota.json")
    strangers: deque[tuple[str, int]] = deque()
    with counts, logbook(node.place, node.audit, identity, safe.keys(), "he serve") as audit:
        service = Service(served, counts, _recorder(audit))

        def note_strangers() -> None:
            while strangers:
                who, times = strangers.popleft()
                audit.append(Kind.UNEXPECTED_PEER, {"who": who, "times": times})

        with Port(
            identity, allowed, known, file.listen, lambda who, times: strangers.append((who, times))
        ) as port:
            ready(port.address, sorted(served), tuple(sorted(allowed)))
            try:
                with sigterm_interrupts():
                    while True:
                        port.attend(service)
                        note_strangers()
            except KeyboardInterrupt:
                note_strangers()  # those of the last moment
                return service.answered


def _clients(
    roster: Roster, me: str, clients: tuple[str, ...]
) -> tuple[dict[str, Card], dict[str, bytes]]:
    """The cards of the clients, and the CURVE keys of everybody else on the roster, who is refused
    by name: a client whose card is not valid now as well. Raises RosterError for one without a
    card."""
    allowed, moment = dict[str, Card](), lifetime.now()
    for name in clients:
        card = roster.card(name)
        try:
            lifetime.check_peer(card, moment)
            allowed[name] = card
        except ExpiredError as error:
            log.warning("%s; until then %s is not answered", error, name)
    others = (card for card in roster if card.name != me and card.name not in allowed)
    return allowed, {card.name: card.curve for card in others}


def _served(seal: Seal, safe: NodeVault, name: str, place: ModelPlace) -> Served:
    """An opened model with its statistics folded into its weights. Raises ModelError."""
    if place.path is not None:
        predictor = load_predictor(place.path)
    else:
        with safe.opened() as store:
            predictor = load_predictor(kept_model(store, place.stored))
    try:
        description = Description.of(name, predictor.job)
        weights = Weights(seal, *folded_weights(description, predictor))
    except QueryError as error:
        raise ModelError(f"models.{name}: {error}") from error
    except ModelError as error:
        raise ModelError(f"models.{name}: {error}") from error
    return Served(description, weights, frozenset(place.clients), place.rows_a_day)


def folded_weights(description: Description, predictor: Predictor) -> tuple[Reals, Reals]:
    """The weights of a description's columns and the intercepts, of an opened model."""
    layer = cast("torch.nn.Linear", predictor.module)
    weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))
    return description.columns.fold(predictor.job.pipeline, predictor.parameters, weight, bias)


def _recorder(audit: AuditLog) -> Callable[[bool, str, str, str], None]:
    def record(is_answered: bool, client: str, model: str, code: str) -> None:
        fields: dict[str, Value] = {"client": client, "model": model, "rows": SLOTS}
        if is_answered:
            audit.append(Kind.QUERY_ANSWERED, fields)
        else:
            audit.append(Kind.QUERY_REFUSED, {**fields, "code": code})

    return record
