"""The plaintext twin: the same training in float64 PyTorch, for comparison only.

It starts from the same weights, sees the same rows in the same batches, and updates by the same
rule at the job's stated learning rates, so that a run over shares differs only by rounding: of
numbers to the fixed point, of cells to the declared range, of rates to what the ring can hold
(`rates.rate`). It needs all owners' rows in one place, which the platform exists to avoid: only
tests and local demonstrations use it, nodes never do.

Losses, rules and decisions are those of `twin.setup`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from mpc_train.base.reading import Reading
from mpc_train.jobs.audience import PREFIX, fold_outputs
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import (
    batches,
    checked_rows,
    fold_jobs,
    is_checked,
    is_newton,
    learning_rate,
    split,
    total_steps,
)
from mpc_train.jobs.sealed import regression_shapes
from mpc_train.jobs.training import is_frozen
from mpc_train.networks.plain import PlainGraph
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local
from mpc_train.owners.row_norms import clipped_rows
from mpc_train.owners.table import Table
from mpc_train.privacy.clip_plan import clipped_by_owners
from mpc_train.regression.settings import family_of
from mpc_train.results.plain_model import means, plain_module
from mpc_train.twin.metrics import digits, twin_metric
from mpc_train.twin.preparation import noisy_twin_parameters, raw_inputs, twin_parameters
from mpc_train.twin.private import Curator, Pasts, private_gradients
from mpc_train.twin.regression import regression_twin
from mpc_train.twin.setup import TwinStopping, twin_clip, twin_loss, twin_optimizer

ALL_NODES = Curator()


@dataclass(frozen=True, repr=False)
class Twin:
    """The twin's result: float64 weights by name, and the job's metrics on held-out rows."""

    state: dict[str, NDArray[np.float64]]
    metrics: dict[str, Reading]
    steps: int = 0
    """The number of training steps: fewer than the job's if early stopping ended it."""


def _as_written(job: Job) -> torch.nn.Module:
    """The trained module, as the researcher wrote it, including its last layer."""
    network = job.model.network
    return plain_module(job) if network is None else PlainGraph(network.graph, job.train.seed)


def train_twin(
    job: Job,
    tables: Sequence[Table],
    initial: Mapping[str, NDArray[np.int64]],
    curator: Curator = ALL_NODES,
) -> Twin:
    """Train on the owners' rows (tables in the order of `job.owners`), and on all but each fold.

    initial: the model's initial weights, int64 at scale 2**fraction_bits, those of the run over
    shares. curator: whose noise a private training has.
    """
    twin = _train(job, tables, initial, curator)
    return replace(twin, metrics=twin.metrics | _over_folds(job, tables, initial))


def _over_folds(
    job: Job, tables: Sequence[Table], initial: Mapping[str, NDArray[np.int64]]
) -> dict[str, Reading]:
    """The mean of each metric over the folds; None if it is None in one of them."""
    found: dict[str, Reading] = {}
    exact = msgspec.structs.replace(job, reveal=msgspec.structs.replace(job.reveal, decimals=None))
    folds = [_train(fold, tables, initial).metrics for fold in fold_jobs(exact)]
    for name in fold_outputs(job):
        values = [fold[name.removeprefix(PREFIX)] for fold in folds]
        numbers = [value for value in values if isinstance(value, float)]
        found[name] = None if len(numbers) < len(values) else digits(job, float(np.mean(numbers)))
    return found


def _train(
    job: Job,
    tables: Sequence[Table],
    initial: Mapping[str, NDArray[np.int64]],
    curator: Curator = ALL_NODES,
) -> Twin:
    pooled, prepare = pooled_inputs(job, tables, curator=curator)
    if job.privacy and clipped_by_owners(job):
        pooled = clipped_rows(job, pooled, split(job)[0])
    inputs = torch.from_numpy(pooled)
    labels = torch.from_numpy(np.concatenate([table.labels for table in tables]))
    if is_newton(job):
        weights = pooled_weights(job, tables)
        state = regression_twin(job, pooled, labels.numpy(), weights, curator)
        return Twin(state | prepare, evaluate(job, state | prepare, tables), total_steps(job))
    module = _as_written(job).double()
    scale = 2.0**job.fraction_bits
    module.load_state_dict(
        {name: torch.from_numpy(value / scale) for name, value in initial.items()},
        strict=job.model.network is None,  # counters start at 0
    )
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not is_frozen(job, name))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer, loss = twin_optimizer(job, trained), twin_loss(job, labels[split(job)[0]])
    checked = torch.from_numpy(checked_rows(job))
    stopping = _stopping(job)
    weights = pooled_weights(job, tables)
    number, pasts = 0, Pasts()
    for epoch in range(job.train.epochs):
        for rows in batches(job, epoch):
            number += 1
            for group in optimizer.param_groups:
                group["lr"] = float(learning_rate(job, epoch, number))
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            if job.privacy:
                counts = None if weights is None else torch.from_numpy(weights[rows])
                private_gradients(
                    job, module, loss, inputs[index], labels[index], curator, pasts, counts
                )
            else:
                outputs = module(inputs[index])
                if weights is not None:
                    outputs.register_hook(_times(torch.from_numpy(weights[rows])))
                loss(outputs, labels[index]).backward()
                twin_clip(job, trained)
            optimizer.step()
        if stopping is not None and is_checked(job, epoch):
            with torch.no_grad():
                found = float(loss(module.eval()(inputs[checked]), labels[checked]))
            module.train()
            if stopping.stop(found, module):
                break
    settings = job.train.early_stopping
    if stopping is not None and settings is not None and settings.keep_best:
        module.load_state_dict(stopping.state)
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    return Twin(state | prepare, evaluate(job, state | prepare, tables), number)


def pooled_inputs(
    job: Job,
    tables: Sequence[Table],
    state: Mapping[str, NDArray[np.float64]] | None = None,
    curator: Curator = ALL_NODES,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The model's inputs for all owners' rows, and the parameters of their preparation, by name.

    state: has the parameters where they come from sums with noise, which is drawn once; None: it is
    drawn here, by the curator.
    """
    training = split(job.at_fold(0))[0]
    raw = [table.raw for table in tables if table.raw is not None]
    if len(raw) == len(tables) and not job.has_noisy_statistics:
        return raw_inputs(job, np.concatenate(raw), training)
    features = np.concatenate([table.features for table in tables])
    local = Local(features, np.concatenate([table.present for table in tables]))
    if not job.has_noisy_statistics:
        found = twin_parameters(job.pipeline, local, training)
    elif state is not None:
        found = {name: state[name] for name in job.pipeline.shapes}
    else:
        noise = partial(curator.words, job)
        found = noisy_twin_parameters(job, local, training, noise)
    return applied(job.pipeline, local, found), found


def pooled_weights(job: Job, tables: Sequence[Table]) -> NDArray[np.float64] | None:
    """How many times the loss of each of all owners' rows counts; None: once."""
    return np.concatenate([table.weights for table in tables]) if job.weight else None


def _times(weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Multiplies each row's gradient; losses are means over rows, so this weights the row's
    loss."""
    return lambda gradient: gradient * weights[:, None]


def _stopping(job: Job) -> TwinStopping | None:
    settings = job.train.early_stopping
    if settings is None:
        return None
    return TwinStopping(settings.patience, float(settings.least_improvement))


def evaluate(
    job: Job, state: Mapping[str, NDArray[np.float64]], tables: Sequence[Table]
) -> dict[str, Reading]:
    """Return the job's metrics of a plaintext model on the held-out rows of pooled tables."""
    _, held_out = split(job)
    inputs = pooled_inputs(job, tables, state)[0][held_out]
    labels = np.concatenate([table.labels for table in tables])[held_out]
    module = plain_module(job).double().eval()
    module.load_state_dict(
        {
            name: torch.from_numpy(np.asarray(value))
            for name, value in state.items()
            if name not in job.pipeline.shapes | regression_shapes(job)
        },
        strict=job.model.network is None,
    )
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs)).numpy()
    if is_newton(job) and family_of(job).logarithmic:
        outputs = means(family_of(job), outputs)
    return {metric: twin_metric(metric, job, outputs, labels) for metric in job.reveal.metrics}


def max_weight_difference(
    one: Mapping[str, NDArray[np.float64]], other: Mapping[str, NDArray[np.float64]]
) -> float:
    """Return the largest absolute difference of a weight between two models of one shape."""
    return max(float(np.max(np.abs(one[name] - other[name]))) for name in one)
