"""What `[train]` means for a job: its loss by name, what stays as it is, what the network draws."""

from mpc_train.jobs.job import Job

SOFTMAX_CLASSES = 16
"""Most classes of one softmax, whose errors the ring is sized for."""

LOSSES: dict[str, tuple[str, ...]] = {
    "linear": ("half_mse", "mse", "l1", "huber", "poisson"),
    "logistic": ("bce",),
    "softmax": ("cross_entropy",),
    "mlp": ("cross_entropy",),
}
"""Which losses suit each kind of model; the first is meant by "auto"."""


def loss_name(job: Job) -> str:
    """The job's loss, "auto" resolved."""
    name = job.train.loss.name
    return possible_losses(job)[0] if name == "auto" else name


def possible_losses(job: Job) -> tuple[str, ...]:
    """The losses of the kind of model; another kind may have any."""
    return LOSSES.get(job.model.kind, ("cross_entropy", "bce", *LOSSES["linear"]))


def drops(job: Job) -> bool:
    """Whether the job's network has a dropout layer."""
    return any(node.op == "dropout" for node in job.graph.nodes)


def is_frozen(job: Job, name: str) -> bool:
    """Whether a tensor of the model keeps the values that it starts with."""
    start = job.train.warm_start
    return start is not None and any(matches(prefix, name) for prefix in start.frozen)


def needs_file(job: Job, me: str) -> bool:
    """Whether a node has to have the state_dict that training starts from."""
    start = job.train.warm_start
    if start is None:
        return False
    return me in job.evaluators if start.source == "public" else me == start.source


def matches(prefix: str, name: str) -> bool:
    """Whether an entry of `frozen` means this tensor: its name, or a beginning up to a dot."""
    return name == prefix or (prefix.endswith(".") and name.startswith(prefix))
