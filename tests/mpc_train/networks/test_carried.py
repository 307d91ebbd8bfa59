"""Networks that a job brings: as data or as code, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import JobError, ModelError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.networks import carried
from mpc_train.results.plain_model import plain_module
from mpc_train.training.first_weights import initial_weights
from tests.support.commands import trained
from tests.support.csv_tables import csv_of, write_tables
from tests.support.jobs import allowing, job_toml, write_job
from tests.support.modules import export, write_modules

NET = """
import torch
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)
    )


def wrong():
    return nn.Sequential(nn.Linear(4, 3), nn.RReLU(), nn.Mish())


def broken():
    module = net()
    with torch.no_grad():
        module[4].weight[0, 0] = float("inf")
    return module


def number():
    return 7


def tiny_eps():
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3, eps=1e-8))


def few(norm):
    return nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 3))


def few_in_a_batch():
    return few(nn.BatchNorm1d(6))


def few_in_a_map():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, (2, 1)), nn.BatchNorm2d(2), nn.Flatten(),
        nn.Linear(4, 3),
    )


def few_in_a_layer():
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def few_in_a_group():
    return few(nn.GroupNorm(2, 6))


def one_in_a_group():
    return few(nn.GroupNorm(6, 6))


def wide():
    return nn.Sequential(nn.Linear(4, 2048), nn.Softmax(-1), nn.Linear(2048, 3))


def large():
    return nn.Sequential(
        nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 3)
    )


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5000, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.table(x.long()).flatten(1))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_modules(tmp_path, monkeypatch, study_net=NET)
    return tmp_path


def write(folder: Path, model: str, classes: int = 3) -> Path:
    lines = f"classes = {classes}\n{model}"
    return write_job(folder, job_toml(("a", "b", "c", "d"), "softmax", model=lines))


MODULE = 'module = "study_net:net"\ninput_shape = [1, 2, 2]'


def exported(folder: Path, factory: str = "study_net:net", shape: str = "1,2,2") -> str:
    return export(folder, factory, shape)


def test_a_job_carries_a_network_and_its_weights(folder: Path) -> None:
    exported(folder)
    job = load_job(write(folder, 'graph = "model.json"'))
    received = job_from_bytes(job.to_bytes())
    assert received.shapes == job.shapes and received.digest() == job.digest()
    assert list(job.shapes)[:2] == ["0.weight", "0.bias"]
    assert "1.num_batches_tracked" not in job.shapes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        import study_net  # type: ignore[import-not-found]

        module = study_net.net()
    for name, words in initial_weights(received).items():
        expected = module.state_dict()[name].numpy()
        assert np.abs(words / 2**job.fraction_bits - expected).max() <= 2.0**-20
    module.load_state_dict(plain_module(job).state_dict())


def test_a_module_is_the_same_at_every_node(folder: Path) -> None:
    job = load_job(write(folder, MODULE))
    network = job.model.network
    assert network is not None and not network.weights and len(network.source) == 64
    received = job_from_bytes(job.to_bytes())
    first = initial_weights(received)
    (folder / "study_net.py").write_text(NET + "\n# another version\n")
    carried._made.cache_clear()
    with pytest.raises(ModelError, match="differs from the job"):
        initial_weights(received)
    (folder / "study_net.py").write_text(NET)
    carried._made.cache_clear()
    for name, words in initial_weights(received).items():
        np.testing.assert_array_equal(words, first[name])


def test_a_node_calls_only_what_its_rules_list(folder: Path) -> None:
    job = load_job(write(folder, MODULE))
    with pytest.raises(RefusedError, match="study_net:net would be called"):
        check_rules(allowing(job), job, job.owners[0])
    check_rules(allowing(job, modules=("study_net:net",)), job, job.owners[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('module = "study_net:wrong"', r"(?s)1 \(RReLU\).*LeakyReLU.*2 \(Mish\).*SiLU"),
        (MODULE.replace("net:net", "net:broken"), "4.weight: .*not finite"),
        (MODULE.replace("net:net", "net:number"), "not a torch.nn.Module"),
        (MODULE.replace("net:net", "net:missing"), "not installed"),
        ('module = "os; rm"', "not package.module:factory"),
        ('module = "study_net:net"', r"shapes do not fit rows of \[4\]"),
        (MODULE.replace("1, 2, 2", "1, 2, 3"), "shapes do not fit|a row has 4 features"),
        (MODULE + '\ngraph = "model.json"', "either module or graph"),
        ('graph = "nowhere.json"', "No such file"),
        ("input_shape = [4]", "is missing"),
        ('module = "study_net:tiny_eps"', "1: eps = 1e-08 is below 2\\^-20"),
        ('module = "study_net:wide"', r"_1 \(softmax\): softmax over 2048"),
        ('module = "study_net:Words"', "table: a table of 5000"),
        (
            MODULE + "\n[fixed_point]\nactivation_limit = 128",
            "1: batch_norm takes values up to 64",
        ),
    ],
)
def test_what_is_refused(folder: Path, model: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_job(write(folder, model))


@pytest.mark.parametrize(
    ("factory", "batch", "message"),
    [
        ("few_in_a_batch", 1, r"1: batch_norm over 1 value .* train.batch_size = 4 at least"),
        ("few_in_a_batch", 3, r"1: batch_norm over 3 values .* train.batch_size = 4 at least"),
        ("few_in_a_batch", 4, ""),
        ("few_in_a_map", 1, r"2: batch_norm over 2 values .* train.batch_size = 2 at least"),
        ("few_in_a_map", 2, ""),
        ("few_in_a_layer", 8, r"1: layer_norm over 3 values .* normalise over 4 at least"),
        ("few_in_a_group", 8, r"1: group_norm over 3 values .* groups of 4 values at least"),
        ("one_in_a_group", 1, r"1: group_norm over 1 value .* groups of 4 values at least"),
    ],
)
def test_a_norm_over_too_few_values(folder: Path, factory: str, batch: int, message: str) -> None:
    path = write(folder, f'module = "study_net:{factory}"')
    path.write_text(path.read_text().replace("batch_size = 8", f"batch_size = {batch}"))
    if not message:
        load_job(path)
        return
    with pytest.raises(JobError, match=message):
        load_job(path)


def test_the_output_fits_the_classes(folder: Path) -> None:
    with pytest.raises(JobError, match=r"outputs \[3\].* needs \[4\]"):
        load_job(write(folder, MODULE, classes=4))


def test_a_model_file_that_was_changed(folder: Path) -> None:
    content = json.loads(exported(folder))
    path = write(folder, 'graph = "model.json"')

    def job_with(change: str) -> Job:
        other = json.loads(json.dumps(content))
        if change == "shape":
            other["graph"]["nodes"][0]["shape"] = [2, 9, 9]
        elif change == "weights":
            other["weights"]["0.bias"] = "AAAA"
        else:
            other["extra"] = 1
        (folder / "model.json").write_text(json.dumps(other))
        return load_job(path)

    for change, message in (
        ("shape", r"gives \[2, 1, 1\], not \[2, 9, 9\]"),
        ("weights", "3 bytes of weights"),
        ("extra", "unknown field `extra`"),
    ):
        with pytest.raises(JobError, match=message):
            job_with(change)


def test_a_setting_of_another_kind_is_named_before_it_is_read(folder: Path) -> None:
    """A node's rules read some of them, and a job from elsewhere has not been traced yet."""
    exported(folder)
    job = load_job(write(folder, 'graph = "model.json"'))
    tried = 0
    for number, node in enumerate(job.graph.nodes):
        for key in node.settings:
            for value in ("ann", True, -7, [[2]], [1.5], "1e999999999", ""):
                content = json.loads(job.to_bytes())
                nodes = content["model"]["network"]["graph"]["nodes"]
                old = nodes[number]["settings"][key]
                if type(value) is type(old) or (old in ("", "0") and isinstance(value, str)):
                    continue
                nodes[number]["settings"][key] = value
                with pytest.raises(JobError, match=rf"{key} must|Expected|settings"):
                    job_from_bytes(json.dumps(content, separators=(",", ":")).encode())
                tried += 1
    assert tried > 20


def test_a_network_too_large_to_be_carried_says_what_to_do(folder: Path) -> None:
    exported(folder, "study_net:large", "4")
    with pytest.raises(JobError) as caught:
        load_job(write(folder, 'graph = "model.json"'))
    message = str(caught.value)
    assert "model.graph: the job would be longer than 1024 KiB with 1009003 weights" in message
    assert 'module = "package.module:factory"' in message
    # The same network as code is a short job.
    assert len(load_job(write(folder, 'module = "study_net:large"')).to_bytes()) < 1 << 13


def ran(folder: Path, path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    for owner in ("ann", "bob"):
        x = rng.normal(size=(40, 4))
        y = np.digitize(x[:, 0] - x[:, 3], [-0.5, 0.5])
        write_tables(folder, {owner: csv_of(**dict(zip("abcd", x.T, strict=True)), y=y)})
    return trained(path, "--compare")


@pytest.mark.slow
def test_a_million_weights_of_a_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    record = ran(folder, write(folder, 'module = "study_net:large"'))
    assert record["steps"] == 8
    # Softmax is within 2^-12; sums over a thousand inputs carry a thousand roundings.
    assert record["max_weight_difference"] <= 8 * 0.1 * 16 * 2.0**-12
    state = safetensors.torch.load_file(record["model"])
    import study_net

    study_net.large().load_state_dict(state, strict=True)
    assert sum(value.numel() for value in state.values()) == 1_009_003


@pytest.mark.slow
def test_a_carried_network_is_that_of_its_twin(folder: Path) -> None:
    """In real processes, batch normalisation's statistics and counter included."""
    exported(folder)
    record = ran(folder, write(folder, 'graph = "model.json"'))
    assert record["steps"] == 8
    # Softmax is within 2^-12, the rate 0.1, and what a norm divides by is about 1/2.
    assert record["max_weight_difference"] <= 8 * 0.1 * 16 * 2.0**-12
    state = safetensors.torch.load_file(record["model"])
    import study_net

    study_net.net().load_state_dict(state)
    assert state["1.num_batches_tracked"].item() == 8
    assert (state["1.running_mean"] != 0).all()
