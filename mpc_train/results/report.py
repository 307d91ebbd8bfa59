"""A job and its outcome as text, for people.

Says what is computed, what is revealed and to whom. `parties.agreement.contract.describe_trust`
says who would have to collude to learn more.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import exp, prod, sqrt
from typing import Any

from mpc_train.admission.cautions import cautions
from mpc_train.base.reading import Reading
from mpc_train.evaluation.histograms import histograms
from mpc_train.jobs.audience import (
    GLOBAL,
    RANGE,
    TRAINING_COUNTS,
    WITHIN,
    fold_outputs,
    grouped,
    linkage_in_words,
    opening_words,
)
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import UNGROUPED
from mpc_train.jobs.prepare import Prepare
from mpc_train.jobs.reveal import SENSITIVITY
from mpc_train.jobs.schedule import (
    checked_size,
    is_newton,
    split_sizes,
    steps_per_epoch,
    total_steps,
)
from mpc_train.jobs.serve import decimals_words
from mpc_train.jobs.training import drops
from mpc_train.linkage.partners import least_joined
from mpc_train.networks.head import head_of
from mpc_train.owners.columns import columns_of
from mpc_train.privacy.words import lines, noise_line
from mpc_train.regression.settings import described
from mpc_train.results.prepared_words import described as described_steps
from mpc_train.results.prepared_words import some
from mpc_train.tables.normalise import said

MODELS = {
    "linear": "linear regression (squared error)",
    "logistic": "logistic regression (binary cross-entropy)",
    "softmax": "softmax regression (cross-entropy)",
    "mlp": "multi-layer perceptron with ReLU (cross-entropy)",
    "poisson": "Poisson regression (logarithmic link)",
    "gamma": "gamma regression (logarithmic link)",
}
RULES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


def describe(job: Job) -> str:
    """Return what the job computes and reveals, in a few lines of text."""
    if job.federates:
        return _federated(job)
    training, held_out = split_sizes(job)
    model = f"{MODELS[job.model.kind]}, widths {' - '.join(str(width) for width in job.widths)}"
    if job.model.network is not None:
        operations = some(node.op for node in job.graph.nodes)
        model = f"a network of {len(job.graph.nodes)} operations ({operations}),"
    owners = ", ".join(f"{name} ({job.data.rows[name]} rows)" for name in job.owners)
    metrics = ", ".join(job.reveal.metrics)
    ahead = " all that training needs, before it, and leaves" if job.train.preprocess else ""
    return "\n".join(
        (
            f"Job {job.name}, digest {job.digest().hex()}",
            *_purpose(job),
            f"  computed   {model} of {job.label.name!r} from {len(job.features)} features",
            *(f"             {line}" for line in _steps(job)),
            *(f"             {line}" for line in _extras(job)),
            f"             fixed point with {job.fraction_bits} fraction bits",
            f"  data       {owners}",
            *_schema(job),
            *(f"             {line}" for line in _linkage(job)),
            f"             {training} rows train, {held_out} are held out, by public seeds"
            if job.trains
            else f"             {f'all {held_out} rows are measured' if held_out else 'no rows'}",
            *_groups(job),
            *_weighted(job),
            *_set_aside(job),
            *_prepared(job),
            f"  computing  {', '.join(job.evaluators)}; {job.dealer} deals{ahead}",
            *_model(job),
            *(f"             {line}" for line in _said(job)),
            f"             metrics on the held-out rows, {_metric_readers(job)}: "
            + (metrics if metrics else "none"),
            *(
                f"             {line}"
                for line in (*_refusals(job), *_disclosures(job), *linkage_in_words(job))
            ),
            "             sizes, this file, and when each message was sent, to every node",
            *_private(job),
        )
    )


def _private(job: Job) -> list[str]:
    """What differential privacy the job promises, and what costs what of it."""
    if not job.privacy:
        return ["  privacy    no differential privacy is promised"]
    first, *others = [*lines(job), *noise_line(job)]
    return [f"  privacy    {first}", *(f"             {line}" for line in others)]


def _federated(job: Job) -> str:
    """The same of a federated job."""
    settings, plain = job.federated, job.plain
    numbers = sum(prod(shape) for _, shape in plain.tensors)
    secret = settings.sizes == "secret"
    owners = ", ".join(
        f"{name} ({'at most ' if secret else ''}{job.data.rows[name]} rows)" for name in job.owners
    )
    rule = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedadam": "FedAdam", "fedyogi": "FedYogi"}
    counts = {"rows": "as often as its owner has rows", "equal": "once"}
    come = "comes and goes" if len(job.visitors) == 1 else "come and go"
    away = f"; {', '.join(job.visitors)} {come}" if job.visitors else ""
    return "\n".join(
        (
            f"Job {job.name}, digest {job.digest().hex()}",
            *_purpose(job),
            f"  computed   {settings.rounds} rounds of {rule[settings.rule]}: each owner trains",
            f"             {job.model.module} ({numbers:,} numbers)",
            f"             for {settings.local_steps} steps of {settings.batch_size} of its own "
            f"rows ({settings.optimizer}, rate {settings.learning_rate}),",
            f"             predicting {job.label.name!r} from {len(job.features)} features",
            f"             updates are clipped to the norm {settings.clip}; their sum is computed "
            "over shares,",
            f"             where each counts {counts[settings.weighting]}",
            f"  data       {owners}",
            *_schema(job),
            f"             a round needs {settings.least_owners} owners, and waits "
            f"{duration(settings.deadline_s)} for all of them",
            f"  computing  {', '.join(job.evaluators)}; {job.dealer} deals{away}",
            "  revealed   the sum of the updates and the global model, after every round, to the "
            "owners",
            "             which owners took part in a round, and whose update was too large, to "
            "every node",
            *(
                ["             how many rows the owners of a round have together, to the owners"]
                if job.sums_sizes
                else []
            ),
            "             sizes, this file, and when each message was sent, to every node",
            *_private(job),
        )
    )


def _model(job: Job) -> list[str]:
    """What becomes of the model."""
    if job.reveal.model == "none":
        return ["  revealed   nothing of the model but metrics"]
    if job.refreshes:
        return [
            f"  kept       the model, in new shares at {', '.join(job.evaluators)}",
            "             their old ones are destroyed",
            "  revealed   nothing of the model",
        ]
    if job.stays_shared:
        return [
            "  kept       the model, in shares at "
            f"{', '.join(job.evaluators)}: nobody opens it; all of them together could,",
            f"             or one of them with what {job.dealer} knows while it deals",
            *_served(job),
            *_counts(job),
        ]
    return [f"  revealed   the model, once, after the last step, to {opening_words(job)}"]


ANSWERS = {
    "number": "the model's output",
    "probability": "the probability of {}",
    "class": "which class is likeliest, and nothing else",
}


def _served(job: Job) -> list[str]:
    """Who may ask a model that stays in shares, how much, and what comes out."""
    serve = job.serve
    if serve is None:
        return ["  served     to nobody: evaluators compute nothing with it"]
    lines = []
    if serve.clients:
        answers = ANSWERS[serve.answer].format("class 1" if job.outputs == 1 else "each class")
        if serve.answer == "number" and job.outputs > 1:
            answers += " for each class"
        if serve.answer != "class":
            given = serve.decimals
            answers += (
                ", unrounded"
                if given is None
                else f", rounded over shares to {decimals_words(given)}"
            )
        lines += [
            f"to {', '.join(serve.clients)}: at most {serve.rows_a_day} rows a day (UTC) each,",
            f"of each row {answers}",
        ]
    if (drift := serve.watched) is not None:
        lines += [
            f"to {', '.join(job.evaluators)}: how many of each {drift.every_rows} rows that are "
            "asked fall into which",
            f"bins, with noise of ε = {drift.epsilon} for a row; {', '.join(drift.to)} keep"
            f"{'s' if len(drift.to) == 1 else ''} a record",
            f"of how far that is from {_baseline(job)}",
        ]
    if serve.validators:
        lines.append(
            f"to {', '.join(serve.validators)}: metrics on rows of their own, which each such run "
            "lists"
        )
    if serve.train_on:
        lines.append("to later jobs of the same evaluators and dealer: training may go on from it")
    first, *others = lines
    return [f"  served     {first}", *(f"             {line}" for line in others)]


def _baseline(job: Job) -> str:
    """With what the rows that are asked are compared."""
    if not job.counts_training:
        return "the first of these windows; nothing of training rows is counted"
    return "the training rows, whose counts these nodes get in this run"


def _counts(job: Job) -> list[str]:
    """What evaluators learn of the training rows."""
    if not job.counts_training or job.drift is None:
        return ["  revealed   nothing of the model in this run"]
    return [
        f"  revealed   to {', '.join(job.evaluators)}: how many training rows fall into which bin "
        "of",
        f"             {some(one.name for one in histograms(job))},",
        f"             with noise of ε = {job.drift.epsilon} for a row (serve.drift)",
        "             nothing else of the model in this run",
    ]


def _purpose(job: Job) -> list[str]:
    """What the job says it is for, whose data it uses on which basis, and until when."""
    stated = job.purpose
    named = f"for {', '.join(stated.purposes)}" if stated.purposes else "not stated by a name"
    lines = [f"  purpose    {named}{f': {stated.description}' if stated.description else ''}"]
    kinds = [*stated.categories] + [
        f"{', '.join(names)} ({column})" for column, names in stated.columns.items()
    ]
    lines.append(f"             kinds of data: {', '.join(kinds) if kinds else 'not stated'}")
    if stated.legal_basis:
        lines.append(f"             legal basis: {stated.legal_basis}")
    if stated.valid_until is not None:
        lines.append(f"             may be signed until {stated.valid_until} (UTC)")
    return lines


def beware(job: Job) -> list[str]:
    """Lines that follow `describe`: what may let the result say much about few rows. Their time
    depends on the numbers in the job and not, as for `describe`, on its length."""
    return in_lines(cautions(job))


def in_lines(found: Iterable[str]) -> list[str]:
    """Cautions as lines that follow `describe`."""
    return [f"  beware     {line}" for line in found]


def _steps(job: Job) -> list[str]:
    """The number of steps and the rule of each."""
    if is_newton(job):
        return described(job)
    train = job.train
    if not job.trains:
        return ["nothing is trained"]
    return [
        f"{train.epochs} epochs of {steps_per_epoch(job)} batches of "
        f"{train.batch_size}: {total_steps(job)} steps; {_rule(job)}"
    ]


def _rule(job: Job) -> str:
    """The optimizer and its settings."""
    settings, schedule, clip = job.train.optimizer, job.train.schedule, job.train.clip
    parts = [f"{RULES[settings.name]}, learning rate {settings.learning_rate}"]
    if schedule.name != "constant":
        parts[0] += f" ({schedule.name} schedule)"
    if schedule.warmup_steps:
        parts.append(f"warm-up over {schedule.warmup_steps} steps")
    if settings.momentum:
        parts.append(f"{'Nesterov ' if settings.nesterov else ''}momentum {settings.momentum}")
    if settings.weight_decay:
        parts.append(f"weight decay {settings.weight_decay}")
    if clip is not None:
        parts.append(
            f"gradients clipped by value {clip.value}"
            if clip.norm is None
            else f"gradients clipped by norm {clip.norm}"
        )
    return ", ".join(parts)


def _extras(job: Job) -> list[str]:
    """The loss if the job names one, dropout's masks, and the initial weights."""
    found = []
    if job.train.loss.name != "auto":
        found.append(f"loss {job.train.loss.name}")
    network = job.model.network
    head = "" if network is None else head_of(network.graph, job.model.kind)
    if head:
        found.append(f"trained on its logits: the {head} at its end is the loss's own")
    if drops(job):
        found.append(
            "dropout by masks that nobody knows"
            if job.train.dropout_mask == "hidden"
            else "dropout by public masks: every node knows which values are dropped"
        )
    start = job.train.warm_start
    if start is not None:
        what = "a public file" if start.source == "public" else f"{start.source}'s private file"
        if job.starts_from_shares:
            whose = "this job's own rows" if job.has_own_statistics else "that model"
            what = f"the model {start.sha256} in shares"
            if job.pipeline.secret:
                what += f", with inputs prepared by the statistics of {whose}"
        frozen = f"; not trained: {', '.join(start.frozen)}" if start.frozen else ""
        found.append(f"{'starting from' if job.trains else 'the model is'} {what}{frozen}")
    return found


def _linkage(job: Job) -> list[str]:
    """How records of several owners are matched."""
    link, join = job.data.link, job.data.join
    if link is None:
        return []
    keys = []
    for name in link.on:
        rules = link.normalise.get(name, ())
        keys.append(f"{name} ({said(rules)})" if rules else name)
    if join is None:
        return [f"checked for records in several tables, by {' and '.join(keys)}"]
    brought = "; ".join(f"{name}: {', '.join(columns_of(job, name))}" for name in job.owners)
    rows = f"{job.rows}" if job.data.joined else f"{least_joined(job)} to {job.rows}"
    return [
        f"different columns, {brought}",
        f"joined by {' and '.join(keys)}",
        f"{rows} rows result; of {job.rows}",
    ]


def _groups(job: Job) -> list[str]:
    by, rules = job.data.split_by, job.data.split_normalise
    if not by:
        return []
    how = f" ({said(rules)})" if rules else ""
    return [f"             rows of one {by}{how} stay together; only their owner sees it"]


def _prepared(job: Job) -> list[str]:
    """How columns become inputs, unless they are the inputs already."""
    if job.data.table is None and job.pipeline.trivial and job.prepare == Prepare():
        return []
    first, *others = described_steps(job)
    return [f"  prepared   {first}", *(f"             {line}" for line in others)]


def _metric_readers(job: Job) -> str:
    """To whom metrics are revealed."""
    readers = job.reveal.metrics_to
    return f"sealed, only to {', '.join(readers)}" if readers else "to everybody"


def _refusals(job: Job) -> list[str]:
    """Limits and noise of metrics."""
    reveal, found = job.reveal, []
    if reveal.folds:
        means = ", ".join(fold_outputs(job))
        found.append(f"means over {reveal.folds} folds, {reveal.folds} more trainings: {means}")
    if reveal.per_party:
        found.append(
            f"metrics on each owner's held-out rows, "
            f"{_metric_readers(job) if reveal.metrics_to else 'to that owner'}: "
            + ", ".join(reveal.per_party)
        )
    if reveal.metrics or reveal.per_party:
        if not {*reveal.metrics, *reveal.per_party} <= UNGROUPED:
            found.append(_withheld(reveal.least_group))
        if reveal.noise is not None:
            found += _noisy(job, reveal.noise.epsilon)
        if reveal.decimals is not None:
            places = decimals_words(reveal.decimals)
            found.append(f"metrics are rounded over shares to {places}")
    return found


def _noisy(job: Job, epsilon: Decimal) -> list[str]:
    """How much noise metrics have: of every evaluator, each of a discrete Laplace law."""
    found = []
    for metric in job.reveal.metrics:
        ratio = exp(-float(epsilon) / SENSITIVITY[metric])
        deviation = sqrt(2 * ratio * len(job.evaluators)) / (1 - ratio)
        of = f"of {split_sizes(job)[1]} rows" if metric == "accuracy" else "in each cell"
        found.append(f"{deviation:.3g} {of} ({metric})")
    return [
        f"metrics with noise that nobody knows: ε = {epsilon} for a held-out row",
        f"its standard deviation is about {', '.join(found)}",
    ]


def _withheld(least: int) -> str:
    """What is revealed if a metric of groups is unavailable."""
    if least == 1:
        return "whether a metric is undefined: it would be divided by no rows"
    few = "1 row" if least == 2 else f"1 to {least - 1} rows"
    return (
        f"whether a metric is refused (a class, the rows predicted as one, or a bin has {few}) or "
        "undefined (it would be divided by no rows)"
    )


def _schema(job: Job) -> list[str]:
    """The schema of the tables, named as by `mpc-train schema check`."""
    if job.data.table is None:
        return []
    columns = len(job.data.table.columns)
    return [f"             a schema of {columns} columns, digest {job.data.table.digest().hex()}"]


def _weighted(job: Job) -> list[str]:
    """What row weights change, and what they do not."""
    if not job.weight:
        return []
    return [
        f"             each row counts {job.weight!r} times in the loss, at most {job.most_weight}",
        "             metrics and the statistics of [prepare] count every row once",
    ]


def _set_aside(job: Job) -> list[str]:
    rows = checked_size(job)
    return [f"             {rows} more decide when training ends"] if rows else []


def _said(job: Job) -> list[str]:
    """What only the recipients learn besides the model."""
    found = []
    extremes = dict.fromkeys(term.column for term in job.pipeline.terms if term.shared == "minmax")
    if extremes:
        found.append(
            "with it, to them: the smallest and the largest training value of "
            f"{', '.join(extremes)}, each a cell of some row"
        )
    if job.reveal.statistics:
        return [
            *found,
            "with it, to them: standard errors and p-values of its coefficients, their inflation,",
            "which of them determine one another, and whether they converged",
        ]
    if is_newton(job):
        found.append("with it, to them: whether its coefficients converged")
    return found


def _disclosures(job: Job) -> list[str]:
    """What every node learns during the run, as text."""
    train, found = job.train, []
    if job.pipeline.filled and job.has_own_statistics and not job.has_noisy_statistics:
        found.append(
            "before the first step, to everybody: whether a column whose missing cells get the "
            "mean has no value, or too few, at all owners together, and which; then the run "
            "ends"
        )
    if train.early_stopping is not None:
        found.append(
            f"every {train.early_stopping.every} epochs, to everybody: whether training goes on"
        )
    if train.guard_every:
        found.append(
            f"every {train.guard_every} steps, to everybody, including the coordinator: whether a "
            "value left its range"
        )
    if train.guards_end:
        found.append(
            "at the end, to everybody, including the coordinator: whether a value left the ring's "
            "range, one bit; if so the run ends without a result"
        )
    else:
        found.append("nobody is told if a value leaves the ring's range (guard = false)")
    if job.reveal.training_loss_every:
        found.append(
            f"every {job.reveal.training_loss_every} steps, to everybody: the mean loss of a batch "
            f"of {train.batch_size} rows"
        )
    return found


def size(count: float) -> str:
    """Return a number of bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def figure(value: Reading) -> str:
    """Return a metric for people; None is an unavailable one."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return "[" + ", ".join(figure(part) for part in value) + "]"
    return f"{value:.0f}" if value == round(value) and value > 1 else f"{value:.4f}"


def metric(name: str, value: Reading, unavailable: Mapping[str, str]) -> str:
    """Return a metric's name and figure for people, or why there is none."""
    reason = unavailable.get(name, "")
    if value is None:
        return f"{name} {reason or figure(value)}"
    return f"{name} {figure(value)}" + (f"; {reason}" if reason else "")


LEARNT = {
    RANGE: "whether values stayed in range",
    "guard": "whether they did so during training",
    "early_stopping": "when training stopped",
    "training_loss": "losses of batches",
    "empty_columns": 'whether columns with missing = "mean" have enough values',
    GLOBAL: "the global model of each round",
    WITHIN: "whose updates counted",
    TRAINING_COUNTS: "numbers of training rows by bin, with noise",
}
"""By an output of the reveal gate, for people; others, like metrics, are called by their names."""


def learnt_words(outputs: Iterable[str]) -> str:
    """What somebody has learnt, of the outputs of the reveal gate."""
    return ", ".join(LEARNT.get(output, output) for output in outputs) or "nothing"


INSTEAD = {
    "refreshed": "Refreshed {} have new shares of the model, and the old ones are destroyed",
    "kept": "Kept      {} have shares of the model that was brought; nothing was trained",
    "measured": "Measured  the model in shares of {}; nothing was trained",
}
"""By what a run has done instead of training, for people."""


def outcome(result: Mapping[str, Any], private: bool = False) -> str:
    """Return the report at the end of a run; `result` is what `--format json` prints. private: of a
    job with `[privacy]`, whose noise is not that of a second training."""
    steps, before = result["steps"], result.get("resumed_after", 0)
    instead = INSTEAD.get(result.get("instead", ""))
    trained = f"Trained in {duration(result['train_seconds'])}: {steps - before}"
    if result.get("federated"):
        lines = [f"{trained} federated rounds, {result['rounds']} exchanges of the evaluators"]
    elif instead:
        lines = [instead.format(", ".join(result["evaluators"]))]
    else:
        lines = [
            f"{trained} steps, median {result['step_seconds_median'] * 1000:.1f} ms, "
            f"{result['rounds']} rounds"
        ]
    if before:
        lines.append(f"Resumed   after step {before} of {steps}; time, rounds and bytes are since")
    if result.get("bytes_sent"):
        sent = ", ".join(f"{name} {size(count)}" for name, count in result["bytes_sent"].items())
        lines.append(f"Sent      {sent}")
    losses = result.get("losses") or {}
    lines += [f"Loss      {loss:.4f} after step {step}" for step, loss in losses.items()]
    twin = result.get("twin_metrics") or {}
    again = "same training in the clear" + (", with noise of its own" if private else "")
    for name, value in (result.get("metrics") or {}).items():
        beside = f"   ({again}: {figure(twin[name])})" if name in twin else ""
        lines.append(f"Metric    {metric(name, value, result.get('unavailable') or {})}{beside}")
    if result.get("joined_rows"):
        lines.append(f"Joined    {result['joined_rows']} records")
    for owner, count in (result.get("unmatched_records") or {}).items():
        lines.append(f"Joined    {count} of {owner}'s records found no partner")
    for names, what in grouped(result.get("learnt") or {}):
        lines.append(f"Learnt    {', '.join(names)}: {learnt_words(what)}")
    if "max_weight_difference" in result:
        noise = ", most of it by the noise of [privacy]" if private else ""
        lines.append(
            f"Compared  largest difference of a weight {result['max_weight_difference']:.2e}{noise}"
        )
    if result.get("model"):
        lines.append(f"Model     {result['model']}")
    if result.get("kept"):
        digest, *_ = result["kept"].values()
        lines.append(f"Kept      in shares by {', '.join(result['kept'])}: model {digest}")
    if result.get("coefficients"):
        lines.append(f"Table     {result['coefficients']}")
    lines += [f"Sealed    {path}" for path in result.get("sealed") or ()]
    lines += [f"Warning   {warning}" for warning in result.get("warnings") or ()]
    return "\n".join(lines)


def told_lines(told: Mapping[str, Any]) -> list[str]:
    """What a node's owner is told about its own records, at the end of its node's run."""
    lines = []
    if "unmatched_records" in told:
        lines.append(f"Joined: {told['unmatched_records']} of this node's records found no partner")
    return lines + [f"warning: {warning}" for warning in told.get("warnings", ())]
