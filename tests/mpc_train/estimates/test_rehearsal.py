"""A dry run counts what the same program sends where every step is run and every array is real.

`tests/runs/test_estimates.py` compares it with processes.
"""

from pathlib import Path

import numpy as np
import pytest

from mpc_train.estimates import blanks, repeats
from mpc_train.estimates.estimate import Link, estimate, memory_needs
from mpc_train.estimates.rehearsal import Rehearsed, rehearse
from mpc_train.estimates.speed import Speed
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from protocols.ring import kernels, products
from protocols.roles.streams import Stream
from tests.support.jobs import GRADIENTS, JOB, changed, job_toml, loaded, replaced

NET = job_toml(
    [f'{{ name = "x{index}", range = [-4, 4] }}' for index in range(12)],
    "mlp",
    rows={"ann": 120, "bob": 90, "registry": 30},
    model="hidden = [40]\nclasses = 3",
    job='evaluators = ["ann", "bob"]',
    train="""
epochs = 4
batch_size = 20
optimizer = { learning_rate = 0.1, momentum = 0.9 }
schedule = { name = "step", every = 2, factor = 0.5 }
early_stopping = { fraction = 0.2, patience = 9 }
guard = { every = 5 }
""",
    more='[prepare]\nscale = "standard"\n[reveal]\nmetrics = ["accuracy"]\ntraining_loss_every = 7',
)
FOLDS = changed(
    ("early_stopping = { fraction = 0.2, patience = 9 }\nguard = { every = 5 }\n", ""),
    ("training_loss_every = 7", "folds = 2"),
    text=NET,
)
SHARES = changed(
    ('recipients = ["ann", "office"]\n', ""), ("[reveal]", '[reveal]\nmodel = "shares"')
)
JOBS = {"logistic": JOB, "network": NET, "folds": FOLDS, "model in shares": SHARES}


def costs(nodes: dict[str, Rehearsed]) -> dict[str, object]:
    """What must be the same however it is counted."""
    return {
        name: (node.rounds, node.channel.bytes_sent, node.channel.bytes_received)
        for name, node in nodes.items()
    }


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return loaded(tmp_path, JOBS[request.param])


def test_repeated_steps_cost_what_they_would(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found = costs(rehearse(job))
    monkeypatch.setattr(repeats, "FIRST", 10**9)
    assert costs(rehearse(job)) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        'optimizer = { name = "adam", learning_rate = 0.01 }',
        'optimizer = { name = "rmsprop", learning_rate = 0.01 }',
        "optimizer = { learning_rate = 0.1, momentum = 0.9, weight_decay = 0.01 }",
    ],
)
def test_steps_that_round_differently_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    """Adaptive rules have other numbers at each step, a cosine another rate in each epoch."""
    sgd = "optimizer = { learning_rate = 0.1, momentum = 0.9 }"
    cosine = 'schedule = { name = "cosine", warmup_steps = 5 }'
    steps = 'schedule = { name = "step", every = 2, factor = 0.5 }'
    job = loaded(tmp_path, changed((sgd, train), (steps, cosine), text=FOLDS))
    found = costs(rehearse(job))
    monkeypatch.setattr(repeats, "FIRST", 10**9)
    assert costs(rehearse(job)) == found


def test_blank_arrays_cost_what_real_ones_do(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found = costs(rehearse(job))
    monkeypatch.setattr(blanks, "SMALL_BYTES", 1 << 40)
    assert costs(rehearse(job)) == found


def test_nothing_stays_replaced(job: Job) -> None:
    before = np.empty, kernels.split, products.sum_of_products, Stream.octets
    rehearse(job)
    assert (np.empty, kernels.split, products.sum_of_products, Stream.octets) == before


@pytest.mark.slow  # figures of real runs are in test_estimates.py
def test_more_rows_and_wider_layers_take_more(tmp_path: Path) -> None:
    def peak(text: str) -> dict[str, int]:
        return {name: node.arrays for name, node in rehearse(loaded(tmp_path, text)).items()}

    plain = peak(JOB)
    many = peak(replaced("ann = 40, bob = 30", "ann = 400000, bob = 30"))
    assert all(many[name] > plain[name] + 6e6 for name in plain)
    wide = changed(
        ('kind = "logistic"', 'kind = "mlp"\nhidden = [60000]\nclasses = 2'),
        ('"accuracy", "auc"', '"accuracy"'),
    )
    assert all(found > plain[name] + 20e6 for name, found in peak(wide).items())


def test_disk_is_that_of_checkpoints_and_of_what_is_stored_ahead(tmp_path: Path) -> None:
    def disk(text: str) -> dict[str, int]:
        said = estimate(loaded(tmp_path, text), Link(0.0, 1e9), Speed(1e9, 1e9, 1e4))
        return {name: node.disk_bytes for name, node in said.nodes.items()}

    plain = disk(JOB)
    words = 2 * (2 + 1)  # weights and bias, each with its velocity
    assert plain["ann"] >= 3 * 8 * words and plain["registry"] == 0
    ahead = disk(replaced("seed = 7", "seed = 7\npreprocess = true"))
    assert ahead["ann"] > plain["ann"] + 10_000 and ahead["registry"] == 0


@pytest.mark.parametrize("more", ["", "[reveal]\nleast_test_rows = 2\ntraining_loss_every = 500"])
def test_a_node_does_not_go_through_millions_of_steps_before_it_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    kinds, looked = repeats.Repeats._kind, list[int]()

    def counted(self: repeats.Repeats, plan: repeats.Plan, number: int) -> repeats.Kind:
        looked.append(number)
        return kinds(self, plan, number)

    monkeypatch.setattr(repeats.Repeats, "_kind", counted)
    text = job_toml(["a", "b"], train=GRADIENTS.replace("epochs = 1", "epochs = 200000"), more=more)
    job = loaded(tmp_path, text)
    assert total_steps(job) > 1_000_000
    assert {*memory_needs(job)} == {*job.nodes}
    assert max(looked) > 1_000_000  # the last steps are run
    assert len(looked) < 3 * (repeats.BRIEF + 100)
    held = [node.arrays for node in rehearse(job, brief=True).values()]
    monkeypatch.setattr(repeats, "BRIEF", 5000)
    longer = [node.arrays for node in rehearse(job, brief=True).values()]
    assert held == pytest.approx(longer, rel=0.02)
