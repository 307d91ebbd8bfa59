"""Sentences that warn where a job's result may say much about few rows, for those who decide on it.

`job check` prints these sentences, and a node shows them before it asks a person. A node's rules
refuse by default what public numbers prove, and the sentence says so; what depends on the data can
only be pointed out.
"""

from collections import Counter
from decimal import Decimal
from math import prod

from mpc_train.admission.effective_rows import (
    Effective,
    effective_rows,
    first_to_forget,
    held_out_rows,
    lightest,
)
from mpc_train.admission.load import fewest
from mpc_train.admission.rules import MIN_BATCH_ROWS, MIN_ROWS, count
from mpc_train.evaluation.histograms import histograms, noise_of
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import is_newton, split_sizes
from mpc_train.jobs.training import is_frozen

FEW_STEPS = 10
MUCH_EPSILON = 10
LARGE_DELTA = Decimal("0.1")
"""As a part of 1 divided by the number of rows."""
FAR = 16
"""Inputs are of the order of 1; an input that may be larger than this can outweigh all others of
its row."""
NARROW = 10
"""A clip to less than this part of a declared range makes most of its values equal."""
ROWS_A_WEIGHT = 3
"""Regressions with fewer rows per coefficient than this are usually refused as saturated."""
PROTECTS = 3
"""With more ε than this, noise hides little of one row."""
REFUSED = "nodes with default rules refuse it"


def cautions(job: Job) -> list[str]:
    """The sentences, the most serious first; empty if there is nothing to warn of."""
    if job.federates:
        return _of_rounds(job)
    if not job.trains:
        return [*_of_questions(job), *_of_measures(job), *_of_budget(job), *_of_drift(job)]
    return [
        *_of_budget(job),
        *_of_steps(job),
        *_of_rows(job),
        *_of_weights(job),
        *_of_start(job),
        *_of_network(job),
        *_of_inputs(job),
        *_of_measures(job),
        *_of_answers(job),
        *_of_drift(job),
    ]


def _of_budget(job: Job) -> list[str]:
    """Warnings about a promise of differential privacy that promises little."""
    if not job.privacy:
        return []
    found, privacy = [], job.privacy
    if privacy.epsilon > MUCH_EPSILON:
        found.append(
            f"ε = {privacy.epsilon} allows conclusions that are e to the power of "
            f"{privacy.epsilon} times as likely with a row as without it: a small ε is 1, a usual "
            f"one is below {MUCH_EPSILON}"
        )
    if privacy.small_delta * job.rows > LARGE_DELTA:
        found.append(
            f"δ = {privacy.small_delta} is large for {job.rows} rows: take less than a tenth of 1 "
            "divided by their number"
        )
    return found


def _of_rounds(job: Job) -> list[str]:
    """Warnings about what the owners of a federated job learn."""
    settings, owners = job.federated, len(job.owners)
    found = _of_budget(job)
    if not job.privacy:
        found += [
            f"each of the {owners} owners sees the global model of all {settings.rounds} rounds, "
            "and can compute the sum of the others' updates in each: an update is not a row, but a "
            "network may be made so that it is one (read the module that is trained)",
            "nothing is added to the sum: there is no differential privacy",
        ]
        if settings.least_owners == 2:
            found.append("least_owners = 2: in a round of two, each learns the other's update")
    if job.sums_sizes:
        pairs = ", and in a round of two each learns the other's" * (settings.least_owners == 2)
        found.append(
            "numbers of rows are secret from nodes, and not from owners: they learn how many rows "
            "a round has in all, so that an owner's number is the difference of two rounds, one of "
            f'them without it{pairs}; weighting = "equal" uses no numbers of rows ({REFUSED})'
        )
    return found


def _of_questions(job: Job) -> list[str]:
    """Warnings about what metrics of chosen rows tell about a model that is kept."""
    if not (job.reveal.metrics or job.reveal.per_party):
        return []
    whose = ", ".join(job.owners)
    return [
        f"a metric of rows that {whose} chose is an answer of the model: rows that are all alike "
        "make it the answer for one row"
    ]


def _of_steps(job: Job) -> list[str]:
    """Warnings about the sum of gradients that the result is."""
    found, rows = [], effective_rows(job)
    if not is_newton(job) and job.train.batch_size < MIN_BATCH_ROWS:
        found.append(f"a step takes {count(job.train.batch_size)}: {REFUSED}")
    few = _few(rows)
    for whose in few:
        found.append(f"the result is in effect {whose}: {REFUSED}")
    curvature = first_to_forget(job)
    if curvature and not few:
        found += [
            f"at this learning rate training may forget earlier rows: its result may be {whose} "
            "in effect; lower the rate"
            for whose in _few(effective_rows(job, curvature))
        ]
    if rows.steps < FEW_STEPS and not job.privacy:  # which bounds what gradients say
        found.append(
            f"few steps make up the result, {max(rows.steps, 1):.1f} in effect: it is more "
            "gradients at its first weights than a model"
        )
    return found


def _few(rows: Effective) -> list[str]:
    found = [
        f"{count(mine)} of {owner}'s" for owner, mine in rows.owners.items() if mine < MIN_ROWS
    ]
    return [count(rows.pooled)] if rows.pooled < MIN_ROWS else found


def _of_rows(job: Job) -> list[str]:
    """Warnings about organisations that could subtract their own part, or single out a record."""
    if job.data.partition == "columns":
        return [
            "if one record has a value of its own in a column, the column's weight is about that "
            "record: the owner of the columns can choose it"
        ]
    known = [name for name in job.recipients if name in job.owners]
    if len(job.owners) > 2 or not known:
        return []
    return [
        f"{name} gets the result and knows all rows but {other}'s"
        for name in known
        for other in job.owners
        if other != name
    ]


def _of_weights(job: Job) -> list[str]:
    """Warnings about rows that count more than others."""
    found, loss = [], job.train.loss
    if loss.balanced:
        found.append(
            "each class counts the same: a class of few rows counts as much as the others, and a "
            "row that is alone in its class counts as much as all rows of another"
        )
    uneven = lightest(job)
    if uneven and 1 / uneven >= MIN_ROWS:
        found.append(f"some rows count {float(1 / uneven):.0f} times as much as others, or more")
    elif not uneven:
        found.append("rows may have weight 0, so that few others make up the result")
    if job.weight and job.data.partition == "rows":
        found.append("each owner decides how much each of its rows counts")
    return found


def _of_start(job: Job) -> list[str]:
    """Warnings about what is known of the weights before the first step."""
    start, network, found = job.train.warm_start, job.model.network, []
    whose = ""
    if start is not None:
        whose = "its author" if start.source == "public" else start.source
        whose = "those who trained it" if job.starts_from_shares else whose
    elif network is not None:
        whose = "its author"
    if whose:
        found.append(
            f"training starts from weights that {whose} chose: such weights can single out a row, "
            "by a unit that only this row activates, or by errors that no other row has"
        )
    frozen = [name for name in job.shapes if is_frozen(job, name)]
    if network is not None:
        frozen += [name for name, _ in network.graph.named("frozen")]
    if frozen:
        found.append(
            f"{len(dict.fromkeys(frozen))} of {len(job.shapes)} tensors are frozen: "
            "the others may learn only from rows that these let through"
        )
    if job.train.dropout_mask == "public":
        found.append("dropout masks are public, so it is known which rows a weight has not seen")
    return found


def _of_network(job: Job) -> list[str]:
    """Warnings about models that can memorise a row."""
    found, rows = [], min(split_sizes(one)[0] for one in (job, *fewest(job)))
    weights = sum(prod(shape) for name, shape in job.shapes.items() if not is_frozen(job, name))
    plain = job.model.network is None and not job.model.hidden
    if weights * (ROWS_A_WEIGHT if plain else 1) > rows:
        found.append(f"{weights} weights for {rows} training rows: it can memorise rows")
    for node in job.graph.nodes:
        if node.op == "embedding":
            entries = job.graph.tensors[node.tensors["weight"]].shape[0]
            if entries * MIN_ROWS > rows:
                found.append(
                    f"{node.place}: a table of {entries} values for {rows} training rows, so that "
                    "an entry is about few rows"
                )
    levels = Counter(term.column for term in job.pipeline.terms if term.part == "level")
    found += [
        f"{column!r} has {number} levels for {rows} training rows: the weight of a level is about "
        "the rows that have it"
        for column, number in levels.items()
        if number * MIN_ROWS > rows
    ]
    return found


def _of_inputs(job: Job) -> list[str]:
    """Warnings about inputs that can be about few rows, because of their definition."""
    found, terms = [], job.pipeline.terms
    rows = min(split_sizes(one)[0] for one in (job, *fewest(job)))
    cells = sum(
        all(terms[place].part != "number" for place in pair) for pair in job.pipeline.interactions
    )
    if cells * MIN_ROWS > rows:
        found.append(
            f"{cells} inputs are combinations of two categories, for {rows} training rows: the "
            "weight of a combination is about the rows that have it"
        )
    far = {term.column: term.bound for term in terms if not term.scaled and term.bound > FAR}
    if far:
        found.append(
            f"inputs of {', '.join(map(repr, far))} may be as large as {max(far.values()):g}: with "
            "a center and scale far from the actual values, few rows can make up the result"
        )
    clips = {term.column: term.clip for term in terms if term.clip is not None}
    for column, (least, most) in clips.items():
        declared = job.schema[column].range
        if declared is not None and (most - least) * NARROW < float(declared[1] - declared[0]):
            found.append(
                f"{column!r} is clipped to {least:g} … {most:g} of {declared[0]} … {declared[1]}: "
                "rows beyond are equal, and its weight is about those within"
            )
    return found


def _of_measures(job: Job) -> list[str]:
    """Warnings about metrics and losses of few rows."""
    found = []
    if job.reveal.metrics and job.data.partition == "rows":
        found += [
            f"{ours} of the held-out rows are {owner}'s: the owner of the others can subtract "
            f"them; {REFUSED} at {owner}"
            for owner, ours in held_out_rows(job).items()
            if 0 < ours < MIN_ROWS
        ]
    if job.reveal.training_loss_every:
        found.append(
            f"each revealed loss is over {job.train.batch_size} rows, and known rows among them "
            "can be subtracted"
        )
    return found


def _of_answers(job: Job) -> list[str]:
    """A warning if few answers tell a client the model."""
    serve = job.serve
    if serve is None or not serve.clients or serve.answer == "class" or serve.decimals is not None:
        return []
    if job.model.network is None and not job.model.hidden:
        rows = job.pipeline.width + 1
        return [
            f"each client can compute the whole model from unrounded answers to {rows} rows: round "
            'them (serve.decimals), or give answer = "class"'
        ]
    return [
        "unrounded answers to many rows let each client build a model like this one: round them "
        '(serve.decimals), or give answer = "class"'
    ]


def _of_drift(job: Job) -> list[str]:
    """Warnings if counts of rows that are asked tell much of a row, or nothing of a shift."""
    drift, found = job.drift, list[str]()
    if drift is None:
        return found
    if drift.epsilon > PROTECTS:
        whose = "the training rows, and of those" if job.counts_training else "the rows"
        found.append(
            f"counts of {whose} that are asked leave with ε = {drift.epsilon}: above {PROTECTS} "
            "noise hides little of one row (serve.drift.epsilon)"
        )
    if job.counts_training and not job.privacy:
        found.append(
            "noise on counts of the training rows hides which bins a row is in, and not how it has "
            "changed the model whose outputs are counted (serve.drift; [privacy] covers both)"
        )
    noise, bins = noise_of(job), max(len(one.bins) for one in histograms(job))
    if noise * bins > drift.every_rows / 4:
        found.append(
            f"each count of a window of {drift.every_rows} rows has noise of about {noise:.0f} "
            "rows: its index will say little (serve.drift: more rows, more ε, fewer columns with "
            "bins)"
        )
    training = split_sizes(job)[0]
    if job.counts_training and noise * bins > training / 4:
        found.append(
            f"each count of the {training} training rows has noise of about {noise:.0f} rows: as a "
            'baseline of drift they say little (serve.drift: more ε, or baseline = "first-window")'
        )
    return found
