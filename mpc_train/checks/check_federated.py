"""What a federated job must satisfy: `[train.federated]`, and no key that it does not have."""

from decimal import Decimal
from fractions import Fraction
from math import prod

import msgspec

from mpc_train.base.problem import JobProblem, Problems, number
from mpc_train.jobs.job import FixedPoint, Job
from mpc_train.jobs.prepare import Prepare
from mpc_train.jobs.reveal import Reveal
from mpc_train.jobs.train import Federated, Train

MAX_ROUNDS, MAX_LOCAL_STEPS, MAX_DEADLINE_S = 10_000, 1_000_000, 7 * 24 * 3600
MAX_ELEMENTS, MAX_TENSORS, MAX_TITLE = 1 << 26, 10_000, 300
MAX_SUM_ROWS = 1 << 31
"""Of all owners together: a sum of rows · update then fits a word."""
MAX_RATE = 1000
MAX_CLASSES = 100_000
MIN_CLIP, MAX_CLIP = Fraction(1, 1 << 20), Fraction(1 << 20)


def check_federated(job: Job) -> None:
    """Raise JobProblem with all faults. `job.data` must have been checked."""
    settings, found = job.train.federated, Problems()
    if settings is msgspec.UNSET:
        raise JobProblem("train.federated", "is missing; write [train.federated] with rounds = …")
    for check in (_check_sections, _check_model, _check_rounds, _check_rates, _check_rule):
        with found.noting():
            check(job, settings)
    found.check()


def _check_sections(job: Job, settings: Federated) -> None:
    plain = Train(mode="federated", federated=settings, seed=job.train.seed)
    for key in Train.__struct_fields__:
        if getattr(job.train, key) != getattr(plain, key):
            raise JobProblem(
                f"train.{key}",
                'not with mode = "federated": what owners do is under [train.federated]; remove it',
            )
    if job.reveal != Reveal():
        raise JobProblem(
            "reveal",
            "a federated job reveals the global model to its owners and nothing else; remove "
            "[reveal]",
        )
    if job.serve is not None:
        raise JobProblem("serve", "only a model in shares is served; remove [serve]")
    if job.prepare != Prepare():
        raise JobProblem(
            "prepare",
            "owners prepare their rows alone, by the declared centers and scales; remove [prepare]",
        )
    if job.fixed_point != FixedPoint():
        raise JobProblem(
            "fixed_point", "the scale follows from train.federated.clip; remove [fixed_point]"
        )
    if job.data.partition != "rows" or job.data.link is not None:
        raise JobProblem("data.partition", "owners of a federated job do not join their rows")
    if job.weight:
        raise JobProblem("data.weight", "rows of a federated job have no weights; remove it")
    for owner in job.owners:
        if job.data.rows[owner] < 1:
            raise JobProblem(f"data.rows.{owner}", "at least 1: an owner trains on its own rows")
    if sum(job.data.rows.values()) >= MAX_SUM_ROWS:
        raise JobProblem("data.rows", f"together below {MAX_SUM_ROWS}")


def _check_model(job: Job, settings: Federated) -> None:
    model, plain = job.model, job.model.plain
    if model.kind not in ("linear", "logistic", "softmax"):
        raise JobProblem("model.kind", "linear, logistic or softmax, for the output of the module")
    if model.kind == "softmax" and not 2 <= model.classes <= MAX_CLASSES:
        raise JobProblem("model.classes", f"write classes = 2 … {MAX_CLASSES}")
    if model.kind != "softmax" and model.classes:
        raise JobProblem("model.classes", f"a {model.kind} model has no such key; remove it")
    if model.hidden or model.graph or model.network is not None or model.input_shape:
        raise JobProblem(
            "model.module",
            'write module = "package.module:factory" alone; it takes a row as it is',
        )
    if not model.module or plain is msgspec.UNSET:
        raise JobProblem("model.module", 'write module = "package.module:factory"')
    if not 1 <= len(plain.tensors) <= MAX_TENSORS:
        raise JobProblem("model.plain", f"1 to {MAX_TENSORS} tensors")
    names = [name for name, _ in plain.tensors]
    if len(set(names)) != len(names) or any(
        not 1 <= len(name) <= MAX_TITLE or not name.isprintable() for name in names
    ):
        raise JobProblem("model.plain", "names of tensors are short, printable and different")
    shapes = [shape for _, shape in plain.tensors]
    if any(len(shape) > 8 or any(not 0 <= n <= MAX_ELEMENTS for n in shape) for shape in shapes):
        raise JobProblem("model.plain", "a tensor has an impossible shape")
    if not 1 <= sum(map(prod, shapes)) <= MAX_ELEMENTS:
        raise JobProblem("model.plain", f"1 to {MAX_ELEMENTS} numbers in all")
    if any(len(text) != 64 for text in (plain.source, plain.initial)):
        raise JobProblem("model.plain", "a digest has 64 hexadecimal digits")


def _check_rounds(job: Job, settings: Federated) -> None:
    for key, most in (
        ("rounds", MAX_ROUNDS),
        ("local_steps", MAX_LOCAL_STEPS),
        ("batch_size", 1 << 24),
        ("deadline_s", MAX_DEADLINE_S),
    ):
        if not 1 <= getattr(settings, key) <= most:
            raise JobProblem(f"train.federated.{key}", f"1 to {most}")
    if not 2 <= settings.least_owners <= len(job.owners):
        raise JobProblem(
            "train.federated.least_owners",
            f"2 to {len(job.owners)}, the number of owners: the sum of one update is that update",
        )


def _check_rates(job: Job, settings: Federated) -> None:
    for key in ("learning_rate", "server_rate"):
        if not 0 < number(f"train.federated.{key}", getattr(settings, key)) <= MAX_RATE:
            raise JobProblem(f"train.federated.{key}", f"above 0, at most {MAX_RATE}")
    if not MIN_CLIP <= Fraction(number("train.federated.clip", settings.clip)) <= MAX_CLIP:
        raise JobProblem("train.federated.clip", "from 2^-20 to 2^20")
    if not 0 <= number("train.federated.momentum", settings.momentum) < 1:
        raise JobProblem("train.federated.momentum", "at least 0, below 1")
    if settings.momentum and settings.optimizer != "sgd":
        raise JobProblem("train.federated.momentum", 'only with optimizer = "sgd"; remove it')


def _check_rule(job: Job, settings: Federated) -> None:
    prox = number("train.federated.proximal", settings.proximal)
    if (settings.rule == "fedprox") != (prox != 0) or not 0 <= prox <= MAX_RATE:
        raise JobProblem("train.federated.proximal", f"above 0 for fedprox, at most {MAX_RATE}")
    defaults = {"betas": (Decimal("0.9"), Decimal("0.99")), "epsilon": Decimal("0.001")}
    if settings.rule not in ("fedadam", "fedyogi"):
        for key, value in defaults.items():
            if getattr(settings, key) != value:
                raise JobProblem(f"train.federated.{key}", "only fedadam and fedyogi have it")
        return
    for place, beta in enumerate(settings.betas):
        if not 0 <= number(f"train.federated.betas[{place}]", beta) < 1:
            raise JobProblem(f"train.federated.betas[{place}]", "at least 0, below 1")
    if not Decimal("1e-9") <= number("train.federated.epsilon", settings.epsilon) <= 1:
        raise JobProblem("train.federated.epsilon", "from 0.000000001 to 1")
