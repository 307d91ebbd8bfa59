"""What a later job may do with a model in shares: what those who signed the model's job allowed.

Each evaluator compares the two jobs before it signs the later one. The later one's owners may be
others than those whose rows the model was trained on, and these are not asked again.

1. The computing nodes are those that trained it: an evaluator's share is bound to its index, and
   another dealer could read the model together with any one evaluator.
2. The later job means the same network and the same inputs.
3. Measuring is for the job's `validators`.
4. Going on is allowed by `train_on`, and the later job allows no more under `[serve]`: a model that
   stays in shares stays there, whatever comes of it.
5. Metrics are over no fewer rows, and no more exact, than those of the model's own job: also the
   first steps of a training measure the model with which it begins. Nobody is named as their reader
   but owners and readers of the model's job and whoever measures. Windows of drift are over no
   fewer rows either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from mpc_train.errors import RefusedError
from mpc_train.jobs.serve import Drift, Serve

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

_TELLS = ("class", "probability", "number")
"""Answers, from the least that they tell on."""
_COMPARED = ("clients", "rows_a_day", "answer", "decimals", "validators", "train_on", "drift")
"""Keys of `[serve]` of which less may be allowed."""


def check_use(model: Job, digest: str, job: Job) -> None:
    """Raise RefusedError with all that speaks against using the model of this digest, which the job
    `model` trained, in `job`."""
    found = [*_nodes(model, job), *_network(model, job), *_inputs(model, job)]
    if not job.refreshes:  # which the evaluators alone decide: it changes nothing for anybody
        found += _going_on(model, job) if job.trains else _measuring(model, job)
        found += _metrics(model, job)
    if found:
        raise RefusedError(
            f"the job {job.name!r} cannot use the model {digest[:16]}, which the job "
            f"{model.name!r} trained: {'; '.join(found)}. Nothing was shared"
        )


def _nodes(model: Job, job: Job) -> list[str]:  # 1
    found = []
    if job.evaluators != model.evaluators:
        found.append(
            f"job.evaluators must be {', '.join(model.evaluators)}, in this order, who keep its "
            "shares"
        )
    if job.dealer != model.dealer:
        found.append(
            f"job.dealer must be {model.dealer}, as in its training: another dealer could read the "
            "model together with an evaluator"
        )
    return found


def _network(model: Job, job: Job) -> list[str]:  # 2
    found = []
    if (job.model.kind, job.classes) != (model.model.kind, model.classes) or (
        job.graph != model.graph
    ):
        found.append("[model] must be the network of its training")
    if job.fraction_bits != model.fraction_bits:
        found.append(f"fixed_point.fraction_bits must be {model.fraction_bits}, as in its training")
    least = model.fixed_point.activation_limit
    if job.fixed_point.activation_limit < least:
        found.append(f"fixed_point.activation_limit must be at least {least}, as in its training")
    label, trained = job.label, model.label
    if (label.center, label.scale, label.classes) != (
        trained.center,
        trained.scale,
        trained.classes,
    ):
        found.append("data.label must have the classes, center and scale of its training")
    return found


def _inputs(model: Job, job: Job) -> list[str]:  # 2
    mine, others = job.pipeline, model.pipeline
    inputs = [term.name for term in mine.terms]
    expected = [term.name for term in others.terms]
    if inputs != expected or mine.interactions != others.interactions:
        shown = ", ".join(expected[:20]) + (", …" if len(expected) > 20 else "")
        return [f"its inputs are {shown}, in this order; write the [data] and [prepare] of them"]
    columns = [feature.name for feature in job.features]
    if not job.has_own_statistics and (
        mine != others or any(job.schema[name] != model.schema[name] for name in columns)
    ):
        wrong = [a.name for a, b in zip(mine.terms, others.terms, strict=True) if a != b]
        return [
            'with the statistics of the model (train.warm_start.prepare = "model") the schema and '
            f"[prepare] must be those of its training{_named(wrong)}"
        ]
    return []


def _named(inputs: list[str]) -> str:
    return f": see {', '.join(inputs[:20])}" if inputs else ""


def _measuring(model: Job, job: Job) -> list[str]:  # 3
    allowed, found = model.serve or Serve(), list[str]()
    others = [name for name in job.owners if name not in allowed.validators]
    if others:
        found.append(
            f"its job does not allow {', '.join(others)} to measure it ([serve] validators)"
        )
    return found


def _metrics(model: Job, job: Job) -> list[str]:  # 5
    now, then, found = job.reveal, model.reveal, list[str]()
    measures = now.metrics or now.per_party or now.training_loss_every
    if (measures or job.drift is not None) and now.least_group < then.least_group:
        found.append(f"reveal.least_group must be at least {then.least_group}, as in its job")
    if not measures:
        return found
    if now.least_test_rows < then.least_test_rows:
        least = then.least_test_rows
        found.append(f"reveal.least_test_rows must be at least {least}, as in its job")
    if then.decimals is not None and (now.decimals is None or now.decimals > then.decimals):
        found.append(f"reveal.decimals must be at most {then.decimals}, as in its job")
    known = {*model.owners, *model.recipients, *then.metrics_to, *job.owners}
    if others := [name for name in now.metrics_to if name not in known]:
        found.append(
            f"reveal.metrics_to names {', '.join(others)}: metrics of this model are for its "
            "owners, those to whom its job reveals, and whoever measures it"
        )
    if then.noise is not None and (now.noise is None or now.noise.epsilon > then.noise.epsilon):
        found.append(f"reveal.noise must have at most ε = {then.noise.epsilon}, as in its job")
    return found


def _going_on(model: Job, job: Job) -> list[str]:  # 4
    allowed = model.serve or Serve()
    if not allowed.train_on:
        return ["its job does not allow training to go on from it ([serve] train_on)"]
    return [] if job.serve is None else _beyond(allowed, job.serve)


def _beyond(allowed: Serve, asked: Serve) -> list[str]:
    """What `asked` allows beyond `allowed`. A key of which nothing is known here must be the
    same."""
    found = [
        f"serve.{key} must be as in its job"
        for key in Serve.__struct_fields__
        if key not in _COMPARED and getattr(asked, key) != getattr(allowed, key)
    ]
    for key in ("clients", "validators"):
        more = [name for name in getattr(asked, key) if name not in getattr(allowed, key)]
        if more:
            found.append(f"serve.{key} names {', '.join(more)}, whom its job does not allow")
    if asked.rows_a_day > allowed.rows_a_day:
        found.append(f"serve.rows_a_day must be at most {allowed.rows_a_day}, as in its job")
    if _TELLS.index(asked.answer) > _TELLS.index(allowed.answer):
        found.append(f"serve.answer may tell no more than {allowed.answer}, as in its job")
    found += _watching(allowed.watched, asked.watched)
    most = allowed.decimals
    if most is not None and asked.answer != "class":
        finer = asked.decimals is None or asked.decimals > most
        found += [f"serve.decimals must be at most {most}, as in its job"] * finer
    return found


def _watching(allowed: Drift | None, asked: Drift | None) -> list[str]:
    if asked is None:
        return []
    if allowed is None:
        return ["its job does not allow drift to be watched ([serve] drift)"]
    found = []
    if asked.every_rows < allowed.every_rows:
        found.append(f"serve.drift.every_rows must be at least {allowed.every_rows}, as in its job")
    if asked.epsilon > allowed.epsilon:
        found.append(f"serve.drift.epsilon must be at most {allowed.epsilon}, as in its job")
    if more := [name for name in asked.to if name not in allowed.to]:
        found.append(f"serve.drift.to names {', '.join(more)}, whom its job does not allow")
    if allowed.baseline is not UNSET and asked.baseline is UNSET:
        # Outputs over the later job's training rows would leave, which are known to their owners.
        found.append(f'serve.drift.baseline must be "{allowed.baseline}", as in its job')
    return found
