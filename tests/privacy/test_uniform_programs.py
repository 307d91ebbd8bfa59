"""What real evaluators and the dealer send is uniform in every program of `mpc_train`.

As tests/privacy/test_uniform.py: nothing is replaced, secrets are the same in each run, streams
are fresh.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mpc_train.admission.load import load_job
from mpc_train.checkpoints.state import Entry
from mpc_train.evaluation import noise
from mpc_train.evaluation.drift import released
from mpc_train.evaluation.histograms import Histogram
from mpc_train.evaluation.metrics import evaluation_of, revealed
from mpc_train.evaluation.own import exchange, own_halves
from mpc_train.jobs.job import Job
from mpc_train.linkage import link as link_module
from mpc_train.linkage.link import Place, check_duplicates, link
from mpc_train.regression.family import Family, FamilyName
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.shared.brought import shared_statistics, statistics_size
from mpc_train.shared.share import COARSE, FINE, TENSOR, Outline, returned
from mpc_train.training.warm_start import started_with
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.linkage.intersection import ITEM_BYTES, Exponent, agree_key
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Additive
from protocols.shares.reveal import Output, RevealGate
from tests.mpc_train.linkage.test_link import run as run_linked
from tests.privacy.test_privacy_evaluation import CASES
from tests.privacy.test_privacy_link import ROWS, drawn, share
from tests.support.columns_case import JOB as COLUMNS
from tests.support.columns_case import three_owners
from tests.support.columns_case import write_job as write_columns
from tests.support.counted_study import counted_job, counted_of, some_rows
from tests.support.jobs import changed, duplicates_toml, loaded, replaced, write_job
from tests.support.lockstep import LockstepLoopback
from tests.support.loopback import secret, shares_of
from tests.support.regressions import brought, outcome, rows_for, sizes_for
from tests.support.shared_models import bringing_job
from tests.support.tensors import attached, shared_in
from tests.support.transcripts import PROGRAM_TRAFFIC, SHAPE
from tests.support.uniformity import FEW, RUNS, check_uniform, observed, of_roles, suspicious

X = np.random.default_rng(2).integers(-(2**21), 2**21, SHAPE)
FAST = (
    *("layer, max-pool", "layer, embedding", "layer, dropout", "layer, dropout, 16 bits"),
    *("training, huber", "training, sgd, nesterov", "training, clip by value"),
    *("training, early stopping, best model", "training, guard"),
)


@pytest.mark.parametrize(
    ("name", "evaluators"),
    [
        pytest.param(
            name, evaluators, marks=[] if name in FAST and evaluators == 2 else pytest.mark.slow
        )
        for evaluators in (2, 3)
        for name in PROGRAM_TRAFFIC
    ],
)
def test_program(name: str, evaluators: int) -> None:
    run = of_roles(lambda role: PROGRAM_TRAFFIC[name](secret(role, X)), evaluators)
    check_uniform(run, RUNS if name in FAST else FEW)


@pytest.mark.parametrize("name", CASES)
def test_preparation_and_metrics(name: str) -> None:
    draw, program, _ = CASES[name]
    words = draw(np.random.default_rng(1))
    check_uniform(
        of_roles(lambda role: [shares_of(out) for out in program(secret(role, words))], 2), FEW
    )


@pytest.mark.parametrize(
    ("name", "l1"),
    [
        ("linear", Fraction(0)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (
                ("logistic", Fraction(0)),
                ("poisson", Fraction(0)),
                ("gamma", Fraction(0)),
                ("linear", Fraction(1, 20)),
            )
        ),
    ],
)
def test_regression(name: FamilyName, l1: Fraction) -> None:
    family, shape = Family(name), (12, 2)
    inputs, labels = rows_for(name, *shape)
    sizes = sizes_for(family, shape, l1=bool(l1))

    def program(role: Role) -> Any:
        x, y = brought(role, inputs, labels, (0, 1))
        return [shares_of(v) for v in outcome(family, x, y, sizes, 2, l1, lambda number: None)]

    check_uniform(of_roles(program, 2), FEW)


# Jobs


def changed_job(*changes: tuple[str, str]) -> Job:
    return loaded(Path(mkdtemp()), changed(*changes))


def outputs_and_labels(role: Role, rows: int) -> list[MaskedTensor]:
    rng = np.random.default_rng(3)
    z, y = rng.normal(0, 2, (rows, 1)), (rng.random((rows, 1)) < 0.5).astype(float)
    return shared_in(role, z, y)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_noise(evaluators: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts with noise of every evaluator; what is revealed with it is public."""
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 1)
    more = '"accuracy", "confusion"]\nnoise = { epsilon = 1 }\n'
    job = load_job(write_job(Path(mkdtemp()), replaced('"accuracy", "auc"]', more)))

    def program(role: Role) -> None:
        with attached(role, job.fraction_bits):
            z, y = outputs_and_labels(role, 30)
            gate = RevealGate(frozenset(Output(name, 1) for name in job.reveal.metrics))
            metrics = job.reveal.metrics
            evaluation = evaluation_of(job, metrics, lambda some: some, z, y, np.arange(30))
            revealed(job, gate, 1, metrics, evaluation)

    transcripts = check_uniform(of_roles(program, evaluators))
    inputs = [frame.sender for frame in transcripts[0] if frame.tag == b"inpt"]
    noisy = {name: inputs.count(name) for name in (f"p{i}" for i in range(evaluators))}
    assert noisy.pop("p0") == (2 + 2) * (evaluators - 1)
    assert set(noisy.values()) == {2 * (evaluators - 1)}


@cache
def own_job() -> Job:
    """Two owners who compute, and one who is told its metrics without computing."""
    return changed_job(
        ('owners = ["ann", "bob", "cleo"]', 'owners = ["p0", "p1", "olga"]'),
        ('dealer = "registry"', 'evaluators = ["p0", "p1"]\ndealer = "dealer"'),
        ('["ann", "office"]', '["office"]'),
        ("{ ann = 40, bob = 30, cleo = 30 }", "{ p0 = 40, p1 = 30, olga = 30 }"),
        ('metrics = ["accuracy", "auc"]', 'per_party = ["accuracy"]\nleast_test_rows = 3'),
    )


def own_metrics(role: Role, net: LockstepLoopback) -> Any:
    job = own_job()
    with attached(role, job.fraction_bits):
        z, y = outputs_and_labels(role, job.rows)
        gate = RevealGate(agreed_outputs(job))
        halves = own_halves(job, gate, lambda inputs: inputs, z, y)
    role.finish()
    if role.index is None:
        return None
    me = job.evaluators[role.index]
    return exchange(job, net.endpoint(me), me, halves), halves


def test_metrics_of_each_owner() -> None:
    def run(seed: int, net: LockstepLoopback) -> object:
        return of_roles(partial(own_metrics, net=net), 2)(seed, net)

    transcripts = check_uniform(run, meant=("olga",))
    told = {(frame.sender, frame.receiver) for frame in transcripts[0] if len(frame.label) > 16}
    assert told == {("p0", "p1"), ("p1", "p0"), ("p0", "olga"), ("p1", "olga")}


@pytest.mark.parametrize("source", [0, 1, "dealer"])
def test_private_weights_to_start_from(source: Any) -> None:
    job = changed_job()
    values = {name: np.ones(shape) / 3 for name, shape in job.shapes.items()}

    def program(role: Role) -> None:
        mine = role.is_dealer if source == "dealer" else role.index == source
        with attached(role, job.fraction_bits):
            start = started_with(job, role, source, values if mine else None)
            for tensor in start.values():
                shares_of(tensor.masked())

    check_uniform(of_roles(program, 2))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_model_in_shares_that_comes_back(evaluators: int) -> None:
    """Each evaluator's summand is the same in every run, and so is what they add up to."""
    shape = (4, 3)
    said = Outline(
        (Entry(f"{TENSOR}weight", shape), Entry(COARSE, (3,)), Entry(FINE, (3,))), 28, 50
    )
    rng = np.random.default_rng(6)
    parts = [
        {entry.name: rng.integers(-(2**62), 2**62, entry.shape) for entry in said.entries}
        for _ in range(evaluators)
    ]

    def program(role: Role) -> None:
        tensors, found = returned(role, said, None if role.index is None else parts[role.index])
        assert found.factors is not None
        for x in (*tensors.values(), found.factors.coarse, found.factors.fine):
            shares_of(x)

    check_uniform(of_roles(program, evaluators))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_window_of_counts_that_is_released(
    evaluators: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluator's summand of the counts, and its noise, are the same in every run."""
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 2)
    counted = (Histogram("a", ("x", "y"), 0, (0,)), Histogram("b", ("x", "y"), 1, (0,)))
    rng = np.random.default_rng(8)
    parts = rng.integers(-(2**62), 2**62, (evaluators, 4))
    with np.errstate(over="ignore"):
        parts[0] += (np.array([30, 70, 99, 1]) << 20) - parts.sum(axis=0)

    def program(role: Role) -> None:
        mine = np.zeros(4, np.int64) if role.index is None else parts[role.index]
        with attached(role, 20):
            total = remask(Additive(role, (4,), role.known(mine), None))
            shares_of(released(total, counted, 100, Fraction(1), 20))

    check_uniform(of_roles(program, evaluators))


@pytest.mark.parametrize("evaluators", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_training_rows_that_are_counted(evaluators: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts themselves are told; to the dealer nobody sends anything."""
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 2)
    job = counted_job()
    words = some_rows(job, 5)

    def program(role: Role) -> None:
        with attached(role, job.fraction_bits):
            counted_of(job, secret(role, words))

    frames = check_uniform(of_roles(program, evaluators), FEW)[0]
    assert not [frame for frame in frames if frame.receiver == "dealer" and frame.free.any()]


@pytest.mark.parametrize("source", [0, 1, "dealer"])
def test_statistics_of_a_model_that_is_brought(source: Any) -> None:
    job = load_job(bringing_job(Path(mkdtemp())))
    words = np.arange(statistics_size(job), dtype=np.int64) << 40

    def program(role: Role) -> None:
        mine = role.is_dealer if source == "dealer" else role.index == source
        with attached(role, job.fraction_bits):
            found = shared_statistics(job, source, words if mine else None)
            assert found.factors is not None and found.offset is not None
            for x in (found.factors.coarse, found.factors.fine, found.offset):
                shares_of(x)

    check_uniform(of_roles(program, 2))


@pytest.mark.parametrize("text", [COLUMNS, pytest.param(three_owners(), marks=pytest.mark.slow)])
def test_joined_rows(text: str) -> None:
    """Rows that follow their lists through the permutations of all evaluators."""
    job = load_job(write_columns(Path(mkdtemp()), "nobody", text))
    rng = np.random.default_rng(1)
    tables = {name: drawn(job, name, rng) for name in job.owners}
    positions = {name: rng.permutation(job.data.rows[name])[:ROWS] for name in job.owners}
    check_uniform(of_roles(lambda role: share(role, job, tables, positions), len(job.evaluators)))


# Lists of masked items


class SeededExponent(Exponent):
    """An exponent of a test's own choice: everything else is the real one's."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        number = int.from_bytes(hashlib.sha512(seed.encode()).digest()) % (1 << 255)
        self._secret = ec.derive_private_key(number, ec.SECP256R1())


def tokens_of(job: Job) -> dict[str, Any]:
    """Owners have some people in common, in orders of their own."""
    rng = np.random.default_rng(4)
    people = rng.integers(0, 256, (400, ITEM_BYTES), np.uint8)
    found = {}
    common = start = min(10, min(job.data.rows.values()) - 3)
    for owner in job.owners:
        count = job.data.rows[owner]
        rows = [*range(common), *range(start, start + count - common)]
        found[owner], start = people[rng.permutation(rows)], start + count - common
    return found


LINKED: dict[str, tuple[str, str, str]] = {
    "members known to the holders": (COLUMNS, "holders", "rows = { bank = 24, insurer = 18 }"),
    "members known to nobody": (COLUMNS, "nobody", "rows = { bank = 24, insurer = 18 }"),
}


def linkage(name: str) -> tuple[Job, Callable[[Role, Place], Any], dict[str, Any]]:
    if name == "duplicates":
        job = loaded(Path(mkdtemp()), duplicates_toml({"ann": 12, "bob": 9, "cleo": 10}, 100))
        tokens = tokens_of(job)
        return job, lambda role, p: check_duplicates(job, role, p, tokens.get(p.me)), tokens
    text, membership, rows = LINKED[name]
    text = text.replace("rows = { bank = 60, insurer = 45 }", rows)
    text = text.replace("least_rows = 20", "least_rows = 10").replace("test_fraction = 0.25", "")
    text = text.replace('metrics = ["accuracy"]', "").replace("least_test_rows = 5", "")
    job = load_job(write_columns(Path(mkdtemp()), membership, text))
    tokens = tokens_of(job)
    return job, lambda role, place: link(job, role, place, tokens.get(place.me)), tokens


@pytest.mark.parametrize("name", [*LINKED, "duplicates"])
def test_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked items and parts of keys; and a row's item stands anywhere in the list that leaves."""
    job, work, tokens = linkage(name)
    seeds: list[int] = []
    places: dict[str, list[Any]] = {owner: [] for owner in job.owners}

    def entropy(count: int) -> bytes:
        seeds.append(len(seeds))
        return hashlib.shake_256(f"part {name} {len(seeds)}".encode()).digest(count)

    class Noted(SeededExponent):
        def __init__(self, threads: int = 1) -> None:
            seeds.append(len(seeds))
            super().__init__(f"{name} {len(seeds)}")

        def of_tokens(self, mine: Any, key: bytes) -> Any:
            masked = super().of_tokens(mine, key)
            owner = next(o for o, known in tokens.items() if known is mine)
            places[owner].append(masked.copy())
            return masked

    monkeypatch.setattr(link_module, "Exponent", Noted)
    monkeypatch.setattr(
        link_module,
        "agree_key",
        lambda channel, me, holders, sid: agree_key(channel, me, holders, sid, entropy),
    )
    transcripts = observed(lambda seed, net: run_linked(job, work, net, seed), RUNS)
    assert not suspicious(transcripts)
    for owner in job.owners:
        ranks = [
            ranks_of(items, first_list(transcript, owner))
            for items, transcript in zip(places[owner], transcripts, strict=True)
        ]
        assert even_ranks(np.array(ranks)), owner


def first_list(transcript: Any, owner: str) -> Any:
    """The list as its holder sends it."""
    frame = next(
        frame
        for frame in transcript
        if frame.tag == b"list" and frame.sender == owner and int.from_bytes(frame.label[8:12]) == 1
    )
    return frame.payload.reshape(-1, ITEM_BYTES)


def ranks_of(items: Any, sent: Any) -> list[int]:
    """Where in what was sent each row's item stands."""
    where = {item.tobytes(): place for place, item in enumerate(sent)}
    return [where[item.tobytes()] for item in items]


def even_ranks(ranks: Any) -> bool:
    """Whether each row's mean place, over the runs, is that of a uniform order.

    Places of a uniform order among m are within (m − 1) / 2 of their mean, so that a mean of R of
    them is further off than t with probability 2·exp(−2·R·t² / (m − 1)²) at most (Hoeffding).
    """
    runs, rows = ranks.shape
    off = np.abs(ranks.mean(axis=0) - (rows - 1) / 2).max()
    return bool(off < (rows - 1) * np.sqrt(np.log(2 * rows / 1e-12) / (2 * runs)))


def test_lists_in_the_order_of_their_rows_are_seen() -> None:
    in_order = np.tile(np.arange(24), (RUNS, 1))
    mixed = np.array([np.random.default_rng(i).permutation(24) for i in range(RUNS)])
    assert even_ranks(mixed) and not even_ranks(in_order)
