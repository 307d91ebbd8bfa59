"""What a job must satisfy beyond the types of its fields.

Every check raises JobProblem with the faulty key and a message that says what to write instead. The
checks run wherever a job enters: for a file, and again at every node that receives the job from the
coordinator.
"""

from math import prod

from msgspec import UNSET

from mpc_train.base.problem import JobProblem, Problems, no_duplicates
from mpc_train.base.sizes import check_sizes
from mpc_train.checks.check_data import check_data
from mpc_train.checks.check_federated import check_federated
from mpc_train.checks.check_privacy import check_privacy
from mpc_train.checks.check_purpose import check_purpose
from mpc_train.checks.check_reveal import check_bounds, check_reveal
from mpc_train.checks.check_serve import check_serve
from mpc_train.checks.check_train import check_settings, check_train
from mpc_train.jobs.job import JOB_VERSION, Job
from mpc_train.jobs.kinds import NUMBERS
from mpc_train.networks.carried import check_carried
from mpc_train.networks.graph import GraphError
from mpc_train.networks.head import check_head
from mpc_train.tables.spelling import entry_of
from protocols.names import MAX_ROLE_NAMES, NAME

MAX_WIDTH = 65_536
MAX_CLASSES = 1_000
MAX_WEIGHTS = 1 << 26
"""Half a GiB as words; a ResNet-50 has 25 million."""
MAX_VALUES = 1 << 25
"""All values of a row between layers, together."""
MAX_LIMIT = 1 << 20
MAX_BODY_BYTES = 1 << 20
"""The longest body that a node accepts in a proposed contract."""
MIN_FRACTION_BITS, MAX_FRACTION_BITS = 12, 26
"""Below 12 bits gradients round to nothing; above 26 a product of two values of 2^5 overflows."""


def check_job(job: Job) -> None:
    """Raise JobProblem with the contradictions of every section, as far as they can be found."""
    check_sizes(job)
    if job.version != JOB_VERSION:
        raise JobProblem("version", f"this program reads version {JOB_VERSION}")
    found = Problems()
    federates = _federates(job)
    settings = (check_data,) if federates else (check_data, check_settings, check_bounds)
    for check in (_check_roles, _check_classes, *settings):
        with found.noting():
            check(job)
    found.check()
    # From here on each check relies on the ones before it.
    _ = job.pipeline  # raises the faults of [prepare]
    if federates:
        _check_labels(job)
        for check in (check_federated, check_purpose):
            with found.noting():
                check(job)
        found.check()
        check_privacy(job)
        if len(job.to_bytes()) > MAX_BODY_BYTES:
            raise _too_long(job)
        return
    _check_model(job)
    _check_weights(job)
    for check in (check_train, check_reveal, check_privacy, check_serve, check_purpose):
        with found.noting():
            check(job)
    found.check()
    if len(job.to_bytes()) > MAX_BODY_BYTES:
        raise _too_long(job)


def _federates(job: Job) -> bool:
    """Raise JobProblem for what only a federated job may have."""
    if job.federates:
        return True
    if job.train.federated is not UNSET:
        raise JobProblem(
            "train.federated", 'only with mode = "federated"; write it, or remove this'
        )
    if job.model.plain is not UNSET:
        raise JobProblem("model.plain", "is filled in for a federated job; remove it")
    return False


def _check_classes(job: Job) -> None:
    if not 0 <= job.model.classes <= MAX_CLASSES:
        raise JobProblem("model.classes", f"write classes = 2 … {MAX_CLASSES}")


def _too_long(job: Job) -> JobProblem:
    network, most = job.model.network, MAX_BODY_BYTES >> 10
    if network is None or job.model.module:
        return JobProblem("data.features", f"the job is longer than {most} KiB; use fewer columns")
    weights = sum(prod(shape) for shape in job.shapes.values())
    return JobProblem(
        "model.graph",
        f"the job would be longer than {most} KiB with {weights} weights in it; write module = "
        '"package.module:factory" instead, and install the code at every node',
    )


def _check_roles(job: Job) -> None:
    roles = job.job
    if not NAME.match(roles.name):
        raise JobProblem("job.name", "use a-z, 0-9 and -, at most 63 characters")
    for key in ("owners", "evaluators", "recipients"):
        names: tuple[str, ...] = getattr(roles, key)
        if key == "recipients" and not job.seals_model:
            if names and job.federates:
                raise JobProblem(
                    "job.recipients", "all owners get the global model of each round; remove them"
                )
            if names:
                raise JobProblem(
                    "job.recipients",
                    f'nobody opens the model (reveal.model = "{job.reveal.model}"); remove the '
                    "recipients, or seal the model to them",
                )
            continue
        if not names:
            raise JobProblem(f"job.{key}", "at least one name is needed")
        for name in names:
            _check_name(f"job.{key}", name)
        no_duplicates(f"job.{key}", names)
        if len(names) > MAX_ROLE_NAMES:
            raise JobProblem(f"job.{key}", f"at most {MAX_ROLE_NAMES} names")
    for name in job.reveal.metrics_to:
        _check_name("reveal.metrics_to", name)
    if len(job.reveal.metrics_to) > MAX_ROLE_NAMES:
        raise JobProblem("reveal.metrics_to", f"at most {MAX_ROLE_NAMES} names")
    _check_name("job.dealer", roles.dealer)
    if roles.dealer in roles.evaluators:
        raise JobProblem(
            "job.dealer",
            f"{roles.dealer} cannot deal and evaluate: it knows every mask and could read the "
            "data; name another dealer, or remove it from the evaluators",
        )
    if len(roles.evaluators) < 2:
        raise JobProblem(
            "job.evaluators",
            "at least two evaluators are needed; by default they are the owners without the dealer",
        )


def _check_name(key: str, name: str) -> None:
    if not NAME.match(name):
        raise JobProblem(key, f"{name!r} is not a node name: use a-z, 0-9 and -")


def _check_model(job: Job) -> None:
    model = job.model
    _check_network(job)
    if model.kind in ("softmax", "mlp"):
        if not 2 <= model.classes <= MAX_CLASSES:
            raise JobProblem("model.classes", f"write classes = 2 … {MAX_CLASSES}")
    elif model.classes:
        raise JobProblem("model.classes", f"a {model.kind} model has no such key; remove it")
    if model.kind == "mlp" and model.network is None:
        if not model.hidden:
            raise JobProblem("model.hidden", "an MLP needs hidden widths, like hidden = [64]")
        if len(model.hidden) > 16 or not all(1 <= width <= MAX_WIDTH for width in model.hidden):
            raise JobProblem("model.hidden", f"at most 16 layers of 1 … {MAX_WIDTH}")
    elif model.hidden:
        raise JobProblem("model.hidden", f'a {model.kind} model has none; use kind = "mlp"')
    _check_labels(job)
    low, high = MIN_FRACTION_BITS, MAX_FRACTION_BITS
    if not low <= job.fraction_bits <= high:
        raise JobProblem("fixed_point.fraction_bits", f"between {low} and {high}")
    for key in ("activation_limit", "gradient_limit"):
        if not 1 <= getattr(job.fixed_point, key) <= MAX_LIMIT:
            raise JobProblem(f"fixed_point.{key}", f"between 1 and {MAX_LIMIT}")


def _check_labels(job: Job) -> None:
    model, label = job.model, job.label
    classifier = model.kind not in NUMBERS
    if label.classes:
        if not classifier:
            raise JobProblem(
                "data.label.classes", f"a {model.kind} model predicts a number; remove them"
            )
        no_duplicates("data.label.classes", map(entry_of, label.classes))
        if len(label.classes) != job.classes:
            raise JobProblem(
                "data.label.classes",
                f"the model has {job.classes} classes, not {len(label.classes)}",
            )
    if classifier and (label.center != 0 or label.scale != 1 or label.range):
        raise JobProblem("data.label.scale", "a class has no center, scale or range; remove them")


def _check_weights(job: Job) -> None:
    """Check the numbers of weights and of values per row before any of them is created."""
    key = "model.hidden" if job.model.network is None else "model"
    weights = sum(prod(shape) for shape in job.shapes.values())
    if weights > MAX_WEIGHTS:
        raise JobProblem(key, f"{weights} weights, at most {MAX_WEIGHTS}")
    values = sum(prod(node.shape) for node in job.graph.nodes)
    if values > MAX_VALUES:
        raise JobProblem(key, f"{values} values between layers per row, at most {MAX_VALUES}")


def _check_network(job: Job) -> None:
    """Check that the researcher's own network fits the columns and the kind."""
    model, network = job.model, job.model.network
    if network is None:
        for key in ("module", "graph", "input_shape"):
            if getattr(model, key):
                raise JobProblem(f"model.{key}", "the network that it names is missing")
        return
    key = "model.module" if model.module else "model.graph"
    if model.graph or bool(network.source) != bool(model.module):
        raise JobProblem(key, "a carried network comes from a module or from a graph")
    if model.kind == "mlp":
        raise JobProblem(
            "model.kind", "with a network of your own: linear, logistic or softmax, for its output"
        )
    try:
        check_carried(network)
        check_head(network.graph, model.kind)
    except GraphError as error:
        raise JobProblem(key, str(error)) from error
    graph = network.graph
    if model.input_shape != graph.input_shape or prod(graph.input_shape) != job.pipeline.width:
        raise JobProblem(
            "model.input_shape" if model.module else key,
            f"the network takes {list(graph.input_shape)}, a row has {job.pipeline.width} inputs",
        )
    if graph.output_shape != (job.outputs,):
        raise JobProblem(
            key,
            f"the network outputs {list(graph.output_shape)} for a row; a {model.kind} model of "
            f"this job needs [{job.outputs}]",
        )
