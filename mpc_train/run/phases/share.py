"""Phase 2: each owner's rows and labels become masked tensors, at every computing node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.training import is_frozen
from mpc_train.linkage.sharing import share_joined
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.noisy import sums_shape
from mpc_train.preparation.rows import Rows
from mpc_train.preparation.sharing import Shared, share_in, words_brought
from mpc_train.shared.agreeing import common_share, tell_outline, told_outline
from mpc_train.shared.brought import in_two, shared_statistics
from mpc_train.shared.share import returned
from mpc_train.training.warm_start import PUBLIC, flat, started_with
from protocols.arrays import Reals, Words
from protocols.crypten_tensor.tensor import MaskedTensor, Source
from protocols.ring.fixed_point import encode
from protocols.roles.streams import Stream
from protocols.shares.inputs import OutsideSource, send_outside
from protocols.shares.masked import public

if TYPE_CHECKING:
    from mpc_train.checkpoints.keeper import Keeper
    from mpc_train.jobs.job import Job
    from mpc_train.linkage.link import Linked
    from mpc_train.owners.table import Table
    from mpc_train.shared.share import ModelShare
    from parties.agreement.session import Session
    from protocols.roles.role import Role

INPUT_LABEL = "mpc-train outside input root v1"


def share_all(
    session: Session,
    job: Job,
    role: Role,
    linked: Linked | None,
    take_table: Callable[[], Table | None],
    start: Mapping[str, Reals] | None,
    keeper: Keeper,
    held: Sequence[ModelShare] = (),
    statistics: Words | None = None,
    saw: Callable[[Rows], None] = lambda rows: None,
) -> tuple[Shared, dict[str, MaskedTensor]]:
    """Return all owners' rows and labels, in the order of owners, and the initial weights, if the
    job gives them.

    take_table: returns this node's own rows, which are freed when they are shared. start: the
    state_dict, if this node has it. keeper: has the rows if an earlier session has joined them.
    held: this evaluator's shares of the model that the job starts from, if that is one in shares.
    statistics: of a model that is brought (`shared.brought`), if this node has them. saw: as in
    `share_in`; of joined rows it gets the inputs, as they are if no statistics are secret.
    """
    tensors: dict[str, MaskedTensor] = {}
    given: Parameters | None = None
    if job.starts_from_shares:
        tensors, parameters = _from_shares(session, job, role, held)
        given = None if job.has_own_statistics else parameters
    # Once for rows and weights: a non-computing owner sends one stream.
    sources = {owner: _source(session, job, owner) for owner in job.owners}
    if not job.rows:
        shared = _without_rows(job, role, given)
    elif linked is None:
        before = None
        if job.has_noisy_statistics:
            before = keeper.sums(role, sums_shape(job.pipeline))
        shared = share_in(
            job, sources, session.me, take_table(), partial(_tell, session), given, saw, before
        )
    elif keeper.joined_before:
        take_table()
        shared = keeper.rows(job, role)
    else:
        shared = share_joined(job, role, linked, session.me, take_table())
    if linked is not None and not job.pipeline.secret:
        saw(Rows(shared.inputs.masked().select((slice(None), slice(0, len(job.pipeline.terms))))))
    settings = job.train.warm_start
    if settings is None or job.starts_from_shares:
        return shared, tensors
    source: Source | None = None
    if settings.source == job.dealer:
        source = "dealer"
    elif settings.source != PUBLIC:
        source = sources[settings.source]
    found = started_with(job, role, source, start)
    if source is not None and not job.has_own_statistics:
        shared = replace(shared, parameters=shared_statistics(job, source, statistics))
    return shared, found


def _without_rows(job: Job, role: Role, given: Parameters | None) -> Shared:
    """Of a job that neither trains nor measures."""
    inputs, labels = (
        MaskedTensor(public(role, np.zeros((0, width), np.int64)))
        for width in (job.pipeline.width, job.outputs)
    )
    return Shared(inputs, labels, Parameters() if given is None else given)


def _from_shares(
    session: Session, job: Job, role: Role, held: Sequence[ModelShare]
) -> tuple[dict[str, MaskedTensor], Parameters]:
    """The tensors and the statistics of a model in shares, under fresh masks."""
    if session.is_dealer:
        found, parameters = returned(role, told_outline(session, job), None)
    else:
        share = common_share(session, job, held)
        found, parameters = returned(role, tell_outline(session, job, share), share.parts)
    tensors = {
        name: MaskedTensor(x, requires_grad=not is_frozen(job, name)) for name, x in found.items()
    }
    return tensors, parameters


def send_rows(
    session: Session,
    job: Job,
    table: Table | None,
    start: Mapping[str, Reals] | None,
    statistics: Words | None = None,
) -> None:
    """At an owner that only provides data: send this node's rows, if it has any, the initial
    weights, and the statistics of a model that it brings."""
    streams = []
    for evaluator in job.evaluators[:-1]:
        stream = Stream(session.export(evaluator, INPUT_LABEL))
        stream.begin_step(0)
        streams.append(stream)
    words: Iterable[NDArray[np.int64]] = ()
    if table is not None:
        words = words_brought(job, session.me, table, partial(_tell, session))
    if start is not None:
        words = chain(words, [encode(flat(start), job.fraction_bits)])
    if statistics is not None:
        words = chain(words, [encode(in_two(statistics), 0)])
    for number, each in enumerate(words):
        send_outside(session.channel, job.evaluators, streams, each, number)


def _source(session: Session, job: Job, owner: str) -> Source:
    """How `owner` provides its rows, from this node's view."""
    if owner in job.evaluators:
        return job.evaluators.index(owner)
    if owner == job.dealer:
        return "dealer"
    if session.is_dealer:
        return "outside"
    stream = None
    if session.me != job.evaluators[-1]:
        stream = Stream(session.export(owner, INPUT_LABEL))
        stream.begin_step(0)
    return OutsideSource(session.channel, owner, stream)


def _tell(session: Session, rows: int, of_rows: int) -> None:
    """Report how many rows are shared."""
    session.progress(
        rows=rows, of_rows=of_rows, bytes_sent=session.channel.bytes_sent, phase="sharing"
    )
