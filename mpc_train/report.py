"""A job and its outcome in words, for people.

Says what is computed, what is revealed and to whom. Who would have to collude to learn more is
said by `parties.contract.describe_trust`.
"""

from collections.abc import Mapping
from typing import Any

from mpc_train.job import Job
from mpc_train.schedule import split_sizes, steps_per_epoch, total_steps

MODELS = {
    "linear": "linear regression (squared error)",
    "logistic": "logistic regression (binary cross-entropy)",
    "softmax": "softmax regression (cross-entropy)",
    "mlp": "multi-layer perceptron with ReLU (cross-entropy)",
}


def describe(job: Job) -> str:
    """Return what the job computes and reveals, in a few lines of text."""
    training, held_out = split_sizes(job)
    train, optimizer = job.train, job.train.optimizer
    widths = " - ".join(str(width) for width in job.widths)
    rate = f"learning rate {optimizer.learning_rate}"
    if train.schedule.name != "constant":
        rate += f" ({train.schedule.name} schedule)"
    extras = [
        f"{name} {value}"
        for name, value in (
            ("momentum", optimizer.momentum),
            ("weight decay", optimizer.weight_decay),
        )
        if value
    ]
    owners = ", ".join(f"{name} ({job.data.rows[name]} rows)" for name in job.owners)
    metrics = ", ".join(job.reveal.metrics)
    return "\n".join(
        (
            f"Job {job.name}, digest {job.digest().hex()}",
            f"  computed   {MODELS[job.model.kind]}, widths {widths}, of {job.label.name!r} from "
            f"{len(job.features)} features",
            f"             {train.epochs} epochs of {steps_per_epoch(job)} batches of "
            f"{train.batch_size}: {total_steps(job)} steps; SGD, {', '.join([rate, *extras])}",
            f"             fixed point with {job.fraction_bits} fraction bits",
            f"  data       {owners}",
            f"             {training} rows train, {held_out} are held out, by public seeds",
            f"  computing  {', '.join(job.evaluators)}; {job.dealer} deals",
            f"  revealed   the model, once, after the last step, to {', '.join(job.recipients)}",
            "             metrics on the held-out rows, to everybody: "
            + (metrics if metrics else "none"),
            "             sizes, this file, and when each message was sent, to every node",
        )
    )


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


def figure(value: float | None) -> str:
    """Return a metric for people; None is one that is undefined on the held-out rows."""
    return "undefined" if value is None else f"{value:.4f}"


def outcome(result: Mapping[str, Any]) -> str:
    """Return the report at the end of a run; `result` is what `--format json` prints."""
    lines = [
        f"Trained in {duration(result['train_seconds'])}: {result['steps']} steps, median "
        f"{result['step_seconds_median'] * 1000:.1f} ms, {result['rounds']} rounds"
    ]
    if result.get("bytes_sent"):
        sent = ", ".join(f"{name} {size(count)}" for name, count in result["bytes_sent"].items())
        lines.append(f"Sent      {sent}")
    twin = result.get("twin_metrics") or {}
    for name, value in (result.get("metrics") or {}).items():
        beside = f"   (same training in the clear: {figure(twin[name])})" if name in twin else ""
        lines.append(f"Metric    {name} {figure(value)}{beside}")
    if "max_weight_difference" in result:
        lines.append(
            f"Compared  largest difference of a weight {result['max_weight_difference']:.2e}"
        )
    if result.get("model"):
        lines.append(f"Model     {result['model']}")
    lines += [f"Sealed    {path}" for path in result.get("sealed") or ()]
    return "\n".join(lines)
