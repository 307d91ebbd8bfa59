"""Metrics that everybody learns reach the nodes that did not open them.

Only evaluators open a metric at the reveal gate. Once the computation is over each of them tells
the other nodes what it opened, under their pairwise keys: the metrics' words (`Form.words`), 8
bytes each. Such a node believes nothing unless all evaluators say the same.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import Form, metric_forms
from mpc_train.jobs.audience import OWN
from mpc_train.jobs.training import leaving
from protocols.channel import Channel
from protocols.errors import FrameError
from protocols.roles.frames import receive_all, send_all

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

LABEL = b"mpc-train metrics v1"


def told_forms(job: Job) -> dict[str, Form]:
    """The metrics that everybody learns, in the order in which their words are sent; empty if they
    are sealed to readers."""
    if job.reveal.metrics_to:
        return {}
    return {name: form for name, form in metric_forms(job).items() if OWN not in name}


def told_nodes(job: Job) -> tuple[str, ...]:
    """Who is told: the nodes that do not evaluate. One whose part has ended is gone."""
    gone = {*job.evaluators, *leaving(job)}
    return tuple(name for name in job.nodes if name not in gone)


def spread(job: Job, channel: Channel, me: str, found: Findings) -> Findings:
    """Evaluators send their findings, the other nodes return what they are told; at an evaluator
    the findings themselves.

    job: with the number of joined rows, if any: owners of columns evaluate, so that all nodes that
    are told know it. Raises FrameError if two evaluators say different things, and RangeError for
    an impossible metric.
    """
    forms = told_forms(job)
    if not forms:
        return found
    if me in job.evaluators:
        said = np.concatenate([found.words[name].reshape(-1) for name in forms])
        for name in told_nodes(job):
            send_all(channel, name, LABEL, said.view(np.uint8))
        return found
    if me not in told_nodes(job):
        return found
    size = 8 * sum(prod(form.words) for form in forms.values())
    first, *others = job.evaluators
    octets = receive_all(channel, first, LABEL, size)
    for other in others:
        if receive_all(channel, other, LABEL, size).tobytes() != octets.tobytes():
            raise FrameError(f"{first} and {other} say different metrics: one of them is wrong")
    words, told, start = octets.view(np.int64), Findings(), 0
    for name, form in forms.items():
        end = start + prod(form.words)
        told.take(job, name, form, words[start:end].reshape(form.words))
        start = end
    told.check()
    return told
