"""Metrics over one owner's held-out rows, which only that owner learns.

They pass the reveal gate as halves, like sealed outputs: fresh shares of a fresh mask. After the
computation each evaluator sends its share to the owner under their pairwise key, and the owner adds
the shares. Nobody else has all shares. If the owner is an evaluator, its own share stays with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import form_of
from mpc_train.evaluation.metrics import evaluation_of, words_of
from mpc_train.jobs.audience import OWN
from mpc_train.jobs.schedule import held_out_of, total_steps
from mpc_train.training.passes import Model
from protocols.arrays import Words
from protocols.channel import Channel
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.frames import receive_all, send_all
from protocols.shares.reveal import RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

LABEL = b"mpc-train own metric v1"


def own_names(job: Job, owner: str) -> list[str]:
    """The outputs of the reveal gate that only `owner` learns."""
    return [f"{metric}{OWN}{owner}" for metric in job.reveal.per_party]


def own_halves(
    job: Job,
    gate: RevealGate,
    model: Model,
    inputs: MaskedTensor,
    labels: MaskedTensor,
) -> dict[str, SealedHalf]:
    """This evaluator's halves of all owners' metrics; empty at the dealer.

    model: outputs of inputs, as after training.
    """
    found, metrics = {}, job.reveal.per_party
    for owner in job.owners if metrics else ():
        rows = held_out_of(job, owner)
        evaluation = evaluation_of(job, metrics, model, inputs, labels, rows)
        words = words_of(job, metrics, evaluation)
        for metric, (_, value) in words.items():
            half = gate.for_recipients(f"{metric}{OWN}{owner}", total_steps(job), value)
            if half is not None:
                found[f"{metric}{OWN}{owner}"] = half
    return found


def exchange(job: Job, channel: Channel, me: str, halves: Mapping[str, SealedHalf]) -> Findings:
    """Send the owners their shares, and read this node's own metrics; after the computation.

    An impossible metric does not end the run, because that would tell the others: it is listed in
    the findings' `impossible`.
    """
    shares = {name: _share(half, me == job.evaluators[0]) for name, half in halves.items()}
    if shares:
        for owner in job.owners:
            if owner != me:
                for name in own_names(job, owner):
                    send_all(channel, owner, LABEL, shares[name].reshape(-1).view(np.uint8))
    if me not in job.owners:
        return Findings()
    return _received(job, channel, me, shares, [name for name in job.evaluators if name != me])


def _share(half: SealedHalf, first: bool) -> Words:
    return half.delta - half.lam if first else -half.lam


def _received(
    job: Job, channel: Channel, me: str, shares: Mapping[str, Words], others: Iterable[str]
) -> Findings:
    senders = list(others)
    found = Findings()
    rows = len(held_out_of(job, me))
    for metric, name in zip(job.reveal.per_party, own_names(job, me), strict=True):
        form = form_of(job, metric, rows)
        total = np.zeros(form.words, np.int64)
        if name in shares:
            total += shares[name].reshape(form.words)
        for sender in senders:
            octets = receive_all(channel, sender, LABEL, total.nbytes)
            total += octets.view(np.int64).reshape(form.words)
        found.take(job, metric, form, total)
    return found
