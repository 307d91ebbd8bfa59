"""What `[privacy]` promises, in words: the table of costs, who is a neighbour, what ε means.

The sentences are for people who are not cryptographers, in reports and evidence. They say what is
promised, against whom, and what is not.
"""

from __future__ import annotations

from math import ceil, exp, floor, log10
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from mpc_train.jobs.privacy import ROW
from mpc_train.jobs.schedule import is_newton, steps_per_epoch, total_steps
from mpc_train.privacy.accounting import (
    counts_cost,
    epsilon_of_statistics,
    epsilon_of_training,
    largest_weight,
    mechanisms,
    noise_multiplier,
    privacy_of,
    row_clip,
    sensitivity,
)
from mpc_train.privacy.costs import Cost, costs, total
from mpc_train.privacy.newton import changes_of, label_bound, row_norm
from mpc_train.privacy.statistics import statistics_plan
from protocols.noise.banded import MOST_BANDS, left_over

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MUCH = 0.8
MOST_FOLLOWED = 4096
"""Steps over which what bands gain is computed."""
WIDTH = 87
"""Of sentences."""
SIDES = {
    "training": "rows that train",
    "held-out": "rows held out",
    "own": "nobody",
}


def table(job: Job) -> list[str]:
    """The table of what costs what: a line for each output, and the total."""
    found, spent, privacy = costs(job), total(job), privacy_of(job)
    rows = [("revealed", "ε", "paid by", "how")]
    rows += [(cost.name, _spent(cost), SIDES[cost.side], cost.how) for cost in found]
    if sum(cost.side == "held-out" for cost in found) > 1:
        rows.append(("metrics together", rounded_up(spent.held_out), SIDES["held-out"], ""))
    most = f"of {privacy.epsilon}, at δ = {privacy.small_delta}"
    rows.append(("the most for one unit", rounded_up(spent.epsilon), most, ""))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    return [
        "  ".join((*(row[k].ljust(widths[k]) for k in range(3)), row[3])).rstrip() for row in rows
    ]


def _spent(cost: Cost) -> str:
    return f"in {cost.within}" if cost.within else rounded_up(cost.epsilon)


def rounded_up(epsilon: float) -> str:
    """ε with three decimals, never less than it is."""
    return f"{ceil(epsilon * 1000 - 1e-6) / 1000:g}"


def unit_words(job: Job) -> str:
    """Whom the promise is for."""
    privacy = privacy_of(job)
    if privacy.unit == ROW:
        joined = job.data.join is not None
        return "one joined row, with its cells at all owners" if joined else "one row"
    if job.federates:
        return "one owner, with all its rows"
    return (
        f"one {privacy.unit}, with all rows that one owner has of it, at most {privacy.most_rows}"
    )


def neighbours_words(job: Job) -> str:
    """Which data sets are compared, in a sentence."""
    privacy = privacy_of(job)
    whose = "the row" if privacy.unit == ROW else f"all rows of the {privacy.unit}"
    same = "numbers of rows, and which rows belong together,"
    if privacy.identifiers == "unprotected":
        # The job chooses what is an identifier: whoever signs has to see which columns these are.
        columns = ", ".join(job.data.link.on) if job.data.link is not None else ""
        same = f"numbers of rows, and which table has which identifier ({columns}),"
    if job.federates:
        same = "numbers of rows, and which owners take part in a round,"
    what = (
        f"{whose} had contributed nothing"
        if privacy.neighbours == "zeroed"
        else f"{whose} had contained anything else"
    )
    return (
        f"compared with the same tables in which {what}; {same} are the same in both and are not "
        "protected"
    )


def meaning(job: Job) -> str:
    """What ε and δ mean, in a sentence for readers who are not statisticians."""
    privacy = privacy_of(job)
    factor = exp(float(privacy.epsilon))
    return (
        "whatever anybody may conclude from all that this job reveals, the probability that they "
        f"do is at most {_factor(factor)} times (e to the power of ε) what it would have been "
        f"otherwise, plus {privacy.small_delta} (δ), and the other way round"
    )


def _factor(value: float) -> str:
    """With three digits, never less than it is."""
    unit = 10.0 ** (floor(log10(value)) - 2)
    digits = ceil(value / unit - 1e-9)
    return f"{digits * unit:.3g}" if unit < 1 else f"{digits * round(unit):,}"


def lines(job: Job) -> list[str]:
    """What the job promises, in lines of at most WIDTH characters, with the table; empty without
    `[privacy]`."""
    if not job.privacy:
        return []
    sentences = [*promises(job), *_clipped(job), *_apart(job)]
    return [*(line for one in sentences for line in wrap(one, WIDTH)), *table(job)]


def promises(job: Job) -> list[str]:
    """What is promised, what that means, against whom, and for how much: all that has to be said
    where the job's promise is repeated."""
    alone = "Whoever has several rows is protected less: the promise is for each of them alone."
    more = "It is about one run: what other runs over the same tables cost is added to it."
    return [
        promise(job),
        *([alone] if privacy_of(job).unit == ROW else []),
        _sentence(meaning(job)),
        against(job),
        more,
    ]


def promise(job: Job) -> str:
    """The promise, in a sentence."""
    privacy = privacy_of(job)
    return (
        f"differentially private with ε = {privacy.epsilon} and δ = {privacy.small_delta} for "
        f"{unit_words(job)}, {neighbours_words(job)}."
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _apart(job: Job) -> list[str]:
    """Why the costs of both sides are not added."""
    if not job.trains or not total(job).held_out:
        return []
    return [
        "No unit has both rows that train and rows that are held out, so that none pays both for "
        "the model and for metrics."
    ]


def _clipped(job: Job) -> list[str]:
    """What each row adds at most, and over how many uses of it the noise holds."""
    if not job.trains:
        return []
    if is_newton(job):
        return [_solved(job)]
    count = mechanisms(job)
    if job.federates:
        weight = largest_weight(job)
        counted = "once" if weight == 1 else f"at most {weight} times, for its rows,"
        return [
            f"The update of each owner is clipped to norm {job.federated.clip} and counts "
            f"{counted} in the sum of a round, which gets discrete Gaussian noise, over "
            f"{'1 round' if count == 1 else f'{count} rounds'} in which every owner may take part."
        ]
    uses = "one epoch" if count == 1 else f"{count} epochs, each row once in each"
    return [
        f"Each row{', times its weight,' if job.weight else ''} is clipped to norm "
        f"{float(row_clip(job)):g}, and the sum of each step gets "
        f"discrete Gaussian noise, over {uses}. The order of rows is public, so that no sampling "
        "is counted." + _banded(job)
    ]


def _solved(job: Job) -> str:
    """The same of Newton steps."""
    kind, steps = job.model.kind, total_steps(job)
    label = "" if kind == "logistic" else f", its label to {float(label_bound(job)):g}"
    sums = f"both sums of each of {steps} Newton steps" if steps > 1 else "both sums of the step"
    what = "residuals times inputs, and weights times products of inputs"
    if kind == "linear":
        sums = "both sums over rows, which all steps share"
        what = "labels times inputs, and products of inputs"
    start = ", as does the sum of labels, with which the first step begins"
    return (
        f"The inputs of each row are clipped to norm {float(row_norm(job)):g}, the intercept's 1 "
        f"included{label}, and {sums} ({what}) get discrete Gaussian noise"
        f"{start if kind == 'poisson' else ''}. All rows are in each sum."
    )


def _banded(job: Job) -> str:
    bands = privacy_of(job).bands
    if bands == 1:
        return ""
    return (
        f" The noise of {bands} steps depends on one another, so that less of it adds up; rows are "
        "in the same order in every epoch."
    )


def noise_line(job: Job) -> list[str]:
    """How much noise that is. Needs the library."""
    if not (job.privacy and job.trains):
        return []
    if is_newton(job):
        changes = changes_of(job)
        return wrap(
            "The standard deviation of the noise is at least "
            f"{float(noise_multiplier(job)):.4g} times what one unit changes at most: "
            f"{float(changes.gradient):.4g} in a sum of residuals times inputs, and "
            f"{float(changes.information):.4g} in one of products of inputs, in Frobenius norm.",
            WIDTH,
        )
    statistics = ""
    if job.has_noisy_statistics:
        deviation = float(statistics_plan(job).square) ** 0.5
        statistics = (
            f" That of sums for means and deviations is {deviation:.4g} rows whose cells are at "
            "the end of their range; these alone would cost "
            f"ε = {rounded_up(epsilon_of_statistics(job))}."
        )
    return wrap(
        f"The standard deviation of the noise is at least {float(noise_multiplier(job)):.4g} times "
        f"what one unit changes at most ({float(sensitivity(job)):g})." + statistics + _advice(job),
        WIDTH,
    )


def _advice(job: Job) -> str:
    """What bands would gain, if that is much and the job has none. Rounds cannot have any."""
    if job.federates:
        return ""
    steps = steps_per_epoch(job)
    bands = min(MOST_BANDS, 1 << max(steps.bit_length() - 1, 0))
    left = left_over(bands, min(total_steps(job), MOST_FOLLOWED))
    if privacy_of(job).bands > 1 or left > MUCH:
        return ""
    return (
        f" With bands = {bands} under [privacy] the noise in sums over steps, and so in the model, "
        f"would be about {left:.2f} times as large, at the same ε and δ."
    )


def against(job: Job) -> str:
    """Against whom the promise holds."""
    count = len(job.evaluators)
    whom, what = ("owners", "updates") if job.federates else ("recipients", "data")
    others = "one evaluator" if count == 2 else f"{count - 1} of the {count} evaluators"
    return (
        f"Nobody knows all noise: the promise holds against {whom} together with {others}, and "
        f"against {whom} together with {job.dealer}, which deals. It does not hold against "
        f"{job.dealer} together with an evaluator, or all evaluators together, who can read all "
        f"{what}, nor if a node runs other software than this."
    )


def priced(job: Job) -> dict[str, Any] | None:
    """`as_json` with the noise that the budget demands. Needs the library."""
    said = as_json(job)
    if said is not None and job.trains:
        said["noise_multiplier"] = float(noise_multiplier(job))
        said["spent_training_computed"] = epsilon_of_training(job) + float(counts_cost(job))
    return said


def as_json(job: Job) -> dict[str, Any] | None:
    """The same for programs, as far as it follows from the job; None without `[privacy]`."""
    if not job.privacy:
        return None
    privacy, spent = job.privacy, total(job)
    clip = job.federated.clip if job.federates else privacy.clip
    return {
        "epsilon": str(privacy.epsilon),
        "delta": str(privacy.small_delta),
        "unit": privacy.unit,
        "most_rows": privacy.rows_of_unit,
        "neighbours": privacy.neighbours,
        "clip": None if clip is None else str(clip),
        "clip_label": None if privacy.clip_label is None else str(privacy.clip_label),
        "mechanisms": mechanisms(job),
        "bands": privacy.bands,
        "spent": spent.epsilon,
        "spent_training": spent.training,
        "spent_held_out": spent.held_out,
        "costs": [
            {
                "name": cost.name,
                "outputs": list(cost.outputs),
                "epsilon": cost.epsilon,
                "paid_by": cost.side,
                "how": cost.how,
            }
            | ({"within": cost.within} if cost.within else {})
            for cost in costs(job)
        ],
        "in_words": promises(job),
    }
