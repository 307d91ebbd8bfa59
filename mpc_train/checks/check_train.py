"""What `[train]` must satisfy beyond the types of its fields."""

import re
from decimal import Decimal
from fractions import Fraction

from mpc_train.base.problem import JobProblem, Problems, number
from mpc_train.checks.check_regression import check_kind, check_newton
from mpc_train.jobs.data import TEST_FRACTION
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import (
    is_newton,
    rate_changes,
    split_sizes,
    steps_per_epoch,
    total_steps,
)
from mpc_train.jobs.train import EarlyStopping, Guard, LossSettings, Optimizer, Train, WarmStart
from mpc_train.jobs.training import drops, is_frozen, loss_name, matches, possible_losses

MAX_STEPS = 10_000_000
MAX_SEED = 2**63 - 1
MAX_WARMUP_STEPS = 10_000
MAX_RATE_CHANGES = 10_000
"""Every rate is computed before a job is signed."""
MAX_LOOKS = 10_000
"""How many times something may be disclosed during training: each time is agreed on, and
reported."""
MAX_CHECKPOINT_EVERY = 1_000
MAX_FROZEN = 1_000


_OPTIMIZER_KEYS = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw"),
    "alpha": ("rmsprop",),
    "epsilon": ("adam", "adamw", "rmsprop"),
    "steps": ("newton",),
    "l1": ("newton",),
    "l2": ("newton",),
    "log_range": ("newton",),
}
_LOSS_KEYS = {
    "delta": "huber",
    "positive_weight": "bce",
    "class_weights": "cross_entropy",
    "label_smoothing": "cross_entropy",
    "most_log_rate": "poisson",
}


def check_settings(job: Job) -> None:
    """Raise JobProblem with the faults of `[train]` that do not depend on the rest of the job."""
    train, found = job.train, Problems()
    with found.noting():
        check_kind(job)
    if not job.trains and train.warm_start is not None:
        with found.noting():
            _check_untrained(job, train.warm_start)
        found.check()
        return
    with found.noting():
        _check_keys(train.optimizer)
    if not is_newton(job):
        with found.noting():
            if train.epochs < 1:
                raise JobProblem("train.epochs", "at least 1")
        with found.noting():
            if not 0 <= train.seed <= MAX_SEED:
                raise JobProblem("train.seed", "at least 0 and below 2^63")
        with found.noting():
            _check_optimizer(train.optimizer)
        with found.noting():
            if isinstance(train.guard, Guard) and train.guard.every < 1:
                raise JobProblem("train.guard.every", "at least 1 step")
        with found.noting():
            if not 0 <= train.checkpoint_every <= MAX_CHECKPOINT_EVERY:
                raise JobProblem(
                    "train.checkpoint_every",
                    f"from 1 to {MAX_CHECKPOINT_EVERY:,} steps, or omit it: a node that is asked "
                    "to stop waits for the next one",
                )
        with found.noting():
            _check_preprocess(job)
    found.check()


def check_train(job: Job) -> None:
    """Raise JobProblem at the first contradiction in `[train]`, beyond `check_settings`."""
    train = job.train
    if is_newton(job):
        check_newton(job)
        return
    if not job.trains:
        _check_warm_start(job)
        return
    if train.early_stopping is not None:
        _check_early_stopping(job, train.early_stopping)
    training_rows, _ = split_sizes(job)
    if not 1 <= train.batch_size <= training_rows:
        raise JobProblem(
            "train.batch_size", f"between 1 and the {training_rows} rows left for training"
        )
    if train.epochs * (training_rows // train.batch_size) > MAX_STEPS:
        raise JobProblem("train.epochs", f"more than {MAX_STEPS} steps")
    _check_schedule(job)
    _check_clip(job)
    _check_loss(job, train.loss)
    _check_looks(job)
    _check_warm_start(job)
    if train.dropout_mask == "public" and not drops(job):
        raise JobProblem("train.dropout_mask", "the network has no dropout layer; remove it")


def _check_untrained(job: Job, start: WarmStart) -> None:
    """Check that a job without steps has nothing that only steps need."""
    train = job.train
    if train != Train(warm_start=start, guard=train.guard):
        raise JobProblem(
            "train.epochs",
            "at least 1; a job that trains nothing has its warm_start under [train], and nothing "
            "else but guard",
        )
    if train.guard_every:
        raise JobProblem("train.guard.every", "there are no steps; write true or false")
    if start.frozen:
        raise JobProblem("train.warm_start.frozen", "nothing is trained; remove it")
    if job.data.test_fraction != TEST_FRACTION:
        raise JobProblem(
            "data.test_fraction", "nothing is trained: all rows are held out; remove it"
        )
    for key in ("weight", "split_by", "join"):
        if getattr(job.data, key):
            raise JobProblem(f"data.{key}", "is only for training; remove it")
    measured = job.reveal.metrics or job.reveal.per_party
    rows = any(job.data.rows.values())
    if job.stays_shared and not job.starts_from_shares and (measured or rows):
        raise JobProblem(
            "data.rows",
            "a model that is brought comes without rows: write 0 for each owner, list no metrics, "
            "and measure the model afterwards",
        )
    if job.refreshes and not (
        job.starts_from_shares and train.guard is False and not (measured or rows)
    ):
        raise JobProblem(
            "reveal.model",
            "new shares are of a model in shares, and nothing is computed: write source = "
            '"shares", guard = false, 0 rows for each owner, and no metrics',
        )
    if job.seals_model:
        raise JobProblem(
            "reveal.model",
            'a model that is not trained is not sealed: write model = "none" to measure it',
        )


def _check_preprocess(job: Job) -> None:
    if job.train.preprocess and job.train.early_stopping is not None:
        raise JobProblem(
            "train.preprocess",
            "the dealer makes its material before anybody knows when training stops; remove it, or "
            "early_stopping",
        )
    if job.train.preprocess and job.dealer in job.owners and job.reveal.per_party:
        raise JobProblem(
            "train.preprocess",
            f"the dealer leaves before training, and {job.dealer}, which deals, is also an owner "
            "that learns metrics of its rows at the end (reveal.per_party); remove one of them, or "
            "let somebody deal who owns no rows",
        )


def _check_keys(optimizer: Optimizer) -> None:
    defaults = Optimizer()
    for name, suits in _OPTIMIZER_KEYS.items():
        if optimizer.name not in suits and getattr(optimizer, name) != getattr(defaults, name):
            raise JobProblem(
                f"train.optimizer.{name}", f"{optimizer.name} does not have this key; remove it"
            )


def _check_optimizer(optimizer: Optimizer) -> None:
    key = "train.optimizer"
    if not 0 < number(f"{key}.learning_rate", optimizer.learning_rate) <= 100:
        raise JobProblem(f"{key}.learning_rate", "above 0 and at most 100")
    _below_one(f"{key}.momentum", optimizer.momentum)
    if not 0 <= number(f"{key}.weight_decay", optimizer.weight_decay) <= 1:
        raise JobProblem(f"{key}.weight_decay", "between 0 and 1")
    if optimizer.nesterov and not optimizer.momentum:
        raise JobProblem(f"{key}.nesterov", "needs a momentum; set one")
    for beta in optimizer.betas:
        _below_one(f"{key}.betas", beta)
    _below_one(f"{key}.alpha", optimizer.alpha)
    if not optimizer.alpha or not optimizer.betas[1]:
        raise JobProblem(f"{key}.betas", "the second must be above 0")
    if not 0 < number(f"{key}.epsilon", optimizer.epsilon) <= 1:
        raise JobProblem(f"{key}.epsilon", "above 0 and at most 1")


def _below_one(key: str, value: Decimal) -> None:
    if not 0 <= number(key, value) < 1:
        raise JobProblem(key, "at least 0 and below 1")


def _check_schedule(job: Job) -> None:
    schedule = job.train.schedule
    if schedule.name == "step":
        if schedule.every < 1:
            raise JobProblem("train.schedule.every", "a step schedule needs every = epochs")
        if not 0 < number("train.schedule.factor", schedule.factor) <= 1:
            raise JobProblem("train.schedule.factor", "above 0 and at most 1")
    elif schedule.every or schedule.factor != Decimal("0.1"):
        raise JobProblem("train.schedule", f"{schedule.name} takes neither every nor factor")
    if not 0 <= schedule.warmup_steps <= MAX_WARMUP_STEPS:
        raise JobProblem("train.schedule.warmup_steps", f"between 0 and {MAX_WARMUP_STEPS}")
    changes = rate_changes(job)
    if changes > MAX_RATE_CHANGES:
        raise JobProblem(
            "train.schedule",
            f"{changes} rates, at most {MAX_RATE_CHANGES}: use larger epochs (smaller batches), or "
            "change the rate less often",
        )


def _check_clip(job: Job) -> None:
    clip = job.train.clip
    if clip is None:
        return
    if (clip.value is None) == (clip.norm is None):
        raise JobProblem("train.clip", "write clip = { value = … } or clip = { norm = … }")
    for key in ("value", "norm"):
        limit = getattr(clip, key)
        if limit is not None and not 0 < number(f"train.clip.{key}", limit) <= 1024:
            raise JobProblem(f"train.clip.{key}", "above 0 and at most 1024")


def _check_loss(job: Job, loss: LossSettings) -> None:
    possible = possible_losses(job)
    name = loss_name(job)
    if name not in possible:
        raise JobProblem(
            "train.loss.name",
            f"{name!r} does not suit the model kind {job.model.kind!r}; possible: "
            f"{', '.join(possible)}",
        )
    defaults = LossSettings()
    for key, suits in _LOSS_KEYS.items():
        if name != suits and getattr(loss, key) != getattr(defaults, key):
            raise JobProblem(f"train.loss.{key}", f"{name} does not have this key; remove it")
    if not 0 < number("train.loss.delta", loss.delta) <= 1024:
        raise JobProblem("train.loss.delta", "above 0 and at most 1024")
    for key in ("positive_weight", "class_weights"):
        values = loss.class_weights if key == "class_weights" else (loss.positive_weight,)
        if not all(0 <= number(f"train.loss.{key}", value) <= 64 for value in values):
            raise JobProblem(f"train.loss.{key}", "between 0 and 64")
    if loss.class_weights and len(loss.class_weights) != job.outputs:
        raise JobProblem("train.loss.class_weights", f"one for each of {job.outputs} classes")
    if loss.balanced:
        _check_balanced(job, loss, name)
    _below_one("train.loss.label_smoothing", loss.label_smoothing)
    if not -8 <= number("train.loss.most_log_rate", loss.most_log_rate) <= 8:
        raise JobProblem("train.loss.most_log_rate", "between -8 and 8: rates up to 2980")


def _check_balanced(job: Job, loss: LossSettings, name: str) -> None:
    key = "train.loss.balanced"
    if name not in ("bce", "cross_entropy"):
        raise JobProblem(key, f"weights classes, but {name} has none; remove it")
    if loss.class_weights or loss.positive_weight != 1:
        raise JobProblem(
            key, "write either balanced (secret weights) or class_weights (public ones)"
        )
    if job.train.early_stopping is not None or job.reveal.training_loss_every:
        raise JobProblem(
            key,
            "with secret weights no loss is examined: remove early_stopping and "
            "reveal.training_loss_every",
        )


def _check_early_stopping(job: Job, settings: EarlyStopping) -> None:
    key = "train.early_stopping"
    if not 0 < number(f"{key}.fraction", settings.fraction) < 1:
        raise JobProblem(f"{key}.fraction", "above 0 and below 1")
    if settings.every < 1 or settings.patience < 1:
        raise JobProblem(f"{key}.{'every' if settings.every < 1 else 'patience'}", "at least 1")
    if not 0 <= number(f"{key}.least_improvement", settings.least_improvement) <= 1024:
        raise JobProblem(f"{key}.least_improvement", "at least 0 and at most 1024")
    rows = int(Fraction(settings.fraction) * (job.rows - split_sizes(job)[1]))
    if rows < job.reveal.least_test_rows:
        raise JobProblem(
            f"{key}.fraction",
            f"a decision needs {job.reveal.least_test_rows} rows (reveal.least_test_rows), but "
            "this fraction leaves fewer",
        )


def _check_looks(job: Job) -> None:
    """Check how often something is disclosed during training."""
    train, steps = job.train, total_steps(job)
    periods = {
        "reveal.training_loss_every": job.reveal.training_loss_every,
        "train.guard.every": train.guard_every,
    }
    if train.early_stopping is not None:
        periods["train.early_stopping.every"] = train.early_stopping.every * steps_per_epoch(job)
    for key, period in periods.items():
        if period > 0 and steps // period > MAX_LOOKS:
            raise JobProblem(
                key,
                f"{steps // period} times in {steps} steps, at most {MAX_LOOKS}; check less often",
            )


def _check_warm_start(job: Job) -> None:
    start = job.train.warm_start
    if start is None:
        return
    key = "train.warm_start"
    if start.source == "public":
        if not re.fullmatch(r"[0-9a-f]{64}", start.sha256):
            raise JobProblem(
                f"{key}.sha256", "write the 64 hexadecimal digits of the public file's SHA-256"
            )
    elif job.starts_from_shares:
        _check_shares(job, start)
    elif start.source not in job.owners and start.source != job.dealer:
        raise JobProblem(f"{key}.source", 'write "public", "shares" or the name of an owner')
    elif start.sha256:
        raise JobProblem(f"{key}.sha256", "a digest would reveal the private file; remove it")
    brought = start.source != "public" and not job.trains and job.stays_shared
    if start.prepare == "model" and not (brought or job.starts_from_shares):
        raise JobProblem(
            f"{key}.prepare",
            "only a model in shares, or one that is brought to be kept in shares, comes with "
            'statistics; write "own"',
        )
    if len(start.frozen) > MAX_FROZEN:
        raise JobProblem(f"{key}.frozen", f"at most {MAX_FROZEN} names; write beginnings of names")
    if not job.trains and job.pipeline.secret and job.has_own_statistics:
        raise JobProblem(
            f"{key}.prepare",
            "nothing is trained, so there are no rows for the statistics of [prepare]; write "
            'prepare = "model"',
        )
    trained = [name for name in job.shapes if not is_frozen(job, name)]
    for prefix in start.frozen:
        if not any(matches(prefix, name) for name in job.shapes):
            raise JobProblem(
                f"{key}.frozen",
                f"{prefix!r} does not name a tensor of the model: {', '.join(job.shapes)}",
            )
    if not trained:
        raise JobProblem(f"{key}.frozen", "nothing would be trained")


def _check_shares(job: Job, start: WarmStart) -> None:
    key = "train.warm_start"
    if not re.fullmatch(r"[0-9a-f]{64}", start.sha256):
        raise JobProblem(
            f"{key}.sha256",
            "write the 64 hexadecimal digits of the model, as mpc-train model show prints them",
        )
    if job.seals_model:
        raise JobProblem(
            "reveal.model",
            'what comes of a model in shares stays in shares: write model = "shares", without '
            "recipients",
        )
    if not job.trains and job.stays_shared:
        raise JobProblem(
            "reveal.model", "nothing is trained, and the model is in shares already; measure it"
        )
    if start.prepare == "model" and job.data.partition == "columns":
        raise JobProblem(
            f"{key}.prepare", 'owners of columns compute their own statistics; write "own"'
        )
