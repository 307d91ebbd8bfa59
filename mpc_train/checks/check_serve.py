"""What `[serve]` must satisfy beyond the types of its fields.

Every organisation may ask, also one that evaluates or deals. What a client shares in lies under
masks, and an answer leaves under a fresh one: beside what its role shows anyway, an evaluator that
asks sees its own question and its answer. A dealer that asks knows that mask, as it knows all of
them, and gets from the evaluators nothing but its answer.
"""

from decimal import Decimal

from mpc_train.base.problem import JobProblem, Problems, no_duplicates, number
from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import NUMBERS
from mpc_train.jobs.schedule import split_sizes
from mpc_train.jobs.serve import Serve
from protocols.names import NAME

MAX_CLIENTS = 1000
MAX_ROWS_A_DAY = 1 << 40
MIN_WINDOW, MAX_WINDOW = 100, 10_000_000
"""Rows between two releases of counts."""
MAX_DECIMALS = {"number": 6, "probability": 4}
"""A probability is computed to 2^-12."""


def check_serve(job: Job) -> None:
    """Raise JobProblem with the contradictions in `[serve]`."""
    serve = job.serve
    if serve is None:
        return
    if not job.stays_shared:
        raise JobProblem(
            "serve",
            'only a model that stays in shares is served: write model = "shares" under [reveal], '
            "or remove [serve]; an opened model needs none of it (mpc-train predict, and "
            "mpc-train he serve)",
        )
    found = Problems()
    for check in (_check_names, _check_rows, _check_answer, _check_drift):
        with found.noting():
            check(job, serve)
    found.check()


def _check_names(job: Job, serve: Serve) -> None:
    if not (serve.clients or serve.validators or serve.train_on):
        raise JobProblem(
            "serve.clients", "name who may ask the model, or remove [serve]: nobody may then"
        )
    for key, names in (("serve.clients", serve.clients), ("serve.validators", serve.validators)):
        for name in names:
            if not NAME.match(name):
                raise JobProblem(key, f"{name!r} is not a name of a card: use a-z, 0-9 and -")
        no_duplicates(key, names)
        if len(names) > MAX_CLIENTS:
            raise JobProblem(key, f"at most {MAX_CLIENTS} names")


def _check_rows(job: Job, serve: Serve) -> None:
    if not 1 <= serve.rows_a_day <= MAX_ROWS_A_DAY:
        raise JobProblem("serve.rows_a_day", f"between 1 and {MAX_ROWS_A_DAY}")


def _check_answer(job: Job, serve: Serve) -> None:
    if serve.answer != "number" and job.model.kind in NUMBERS:
        raise JobProblem(
            "serve.answer", f'a {job.model.kind} model has no classes; write answer = "number"'
        )
    if serve.decimals is None:
        return
    if serve.answer == "class":
        raise JobProblem("serve.decimals", "a class is a whole number; remove decimals")
    most = MAX_DECIMALS[serve.answer]
    if not 0 <= serve.decimals <= most:
        raise JobProblem("serve.decimals", f"of a {serve.answer}: between 0 and {most}")
    if 10**serve.decimals > 1 << job.fraction_bits:
        # Beyond this a rounded number might also leave the ring (`serving.answer.rounded`).
        most = len(str(1 << job.fraction_bits)) - 1
        raise JobProblem(
            "serve.decimals",
            f"at most {most}: numbers have {job.fraction_bits} binary places "
            "(fixed_point.fraction_bits)",
        )


def _check_drift(job: Job, serve: Serve) -> None:
    drift, key = serve.watched, "serve.drift"
    if drift is None:
        return
    # Here, so that whoever opens a result does not wait for the libraries that read tables.
    from mpc_train.evaluation.histograms import histograms

    if not serve.clients:
        raise JobProblem(key, "nobody may ask the model, so there is nothing to watch; remove it")
    if not MIN_WINDOW <= drift.every_rows <= MAX_WINDOW:
        raise JobProblem(f"{key}.every_rows", f"between {MIN_WINDOW} and {MAX_WINDOW}")
    if not Decimal("0.01") <= number(f"{key}.epsilon", drift.epsilon) <= 100:
        raise JobProblem(f"{key}.epsilon", "between 0.01 and 100")
    no_duplicates(f"{key}.to", drift.to)
    others = [name for name in drift.to if name not in job.evaluators]
    if others or not drift.to:
        names = f", not {', '.join(others)}" if others else ""
        raise JobProblem(
            f"{key}.to", f"one or more of the evaluators ({', '.join(job.evaluators)}){names}"
        )
    _check_baseline(job, f"{key}.baseline")
    if not histograms(job):
        raise JobProblem(
            key,
            "nothing is counted: no column has bins in the schema, levels or true and false, and "
            "neither has the label; declare bins, or remove it",
        )


def _check_baseline(job: Job, key: str) -> None:
    if not job.counts_training:
        return
    instead = 'write baseline = "first-window"'
    if job.data.join is not None and job.pipeline.secret:
        raise JobProblem(
            key,
            "joined rows with secret statistics are prepared before they can be counted; declare "
            f"scales and fills, or {instead}",
        )
    training, least = split_sizes(job)[0], job.reveal.least_group
    # Of joined rows the number is known, and checked again, when they are joined.
    if training < least and (job.data.join is None or job.data.joined):
        raise JobProblem(
            key,
            f"{training} rows train, fewer than reveal.least_group = {least}, so that their counts "
            f"do not leave; {instead}",
        )
