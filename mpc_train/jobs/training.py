"""What `[train]` means for a job: its loss, its frozen tensors, whether the network has dropout."""

from mpc_train.jobs.job import Job

SOFTMAX_CLASSES = 16
"""The most classes of a softmax: the ring is sized for its errors."""

LOSSES: dict[str, tuple[str, ...]] = {
    "linear": ("half_mse", "mse", "l1", "huber", "poisson"),
    "logistic": ("bce",),
    "softmax": ("cross_entropy",),
    "mlp": ("cross_entropy",),
}
"""The losses for each kind of model; "auto" means the first."""


def loss_name(job: Job) -> str:
    """The job's loss, "auto" resolved."""
    name = job.train.loss.name
    return possible_losses(job)[0] if name == "auto" else name


def possible_losses(job: Job) -> tuple[str, ...]:
    """The losses for this kind of model; for other kinds any loss."""
    return LOSSES.get(job.model.kind, ("cross_entropy", "bce", *LOSSES["linear"]))


def drops(job: Job) -> bool:
    """Whether the job's network has a dropout layer."""
    return any(node.op == "dropout" for node in job.graph.nodes)


def is_frozen(job: Job, name: str) -> bool:
    """Whether a tensor of the model keeps its initial values."""
    start = job.train.warm_start
    return start is not None and any(matches(prefix, name) for prefix in start.frozen)


def leaving(job: Job) -> tuple[str, ...]:
    """The nodes whose part ends before training begins."""
    return (job.dealer,) if job.train.preprocess else ()


def needs_file(job: Job, me: str) -> bool:
    """Whether a node must have the state_dict from which training starts."""
    start = job.train.warm_start
    if start is None:
        return False
    return me in job.evaluators if start.source == "public" else me == start.source


def matches(prefix: str, name: str) -> bool:
    """Whether an entry of `frozen` matches this tensor: its name, or a prefix that ends in a
    dot."""
    return name == prefix or (prefix.endswith(".") and name.startswith(prefix))
