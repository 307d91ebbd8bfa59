"""Dropout in a network: masks that nobody knows, and public ones, against PyTorch."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.networks.convert import convert
from mpc_train.networks.graph import WEIGHT_BITS, Node
from mpc_train.networks.network import Network
from mpc_train.networks.plain import PlainGraph
from mpc_train.training.optimizers.sgd import SGD
from protocols.comparison import coins
from protocols.crypten_tensor.layers import shape as layers_shape
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import MaskedBit
from tests.support.commands import mpc_train, trained
from tests.support.csv_tables import fitting_tables, write_tables
from tests.support.jobs import replaced, write_job
from tests.support.layers import UNIT, F, opened, part
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.modules import export, write_modules

ROWS, STEPS, RATE = 8, 20, Fraction(1, 8)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(0.25), nn.Flatten(), nn.Linear(12, 10)),
        *(nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 3)),
    )


class Replayed(PlainGraph):
    """The twin with masks that were put together from all shares."""

    masks: list[np.ndarray]

    def kept(self, node: Node, rows: int) -> torch.Tensor:
        mask = self.masks.pop(0)
        # Feature maps have channels first over shares.
        return torch.from_numpy(mask.swapaxes(0, 1) if mask.ndim == 4 else mask)


@pytest.mark.parametrize(("evaluators", "seed"), [(2, None), (3, None), (2, 7), (3, 7)])
def test_twenty_steps(monkeypatch: pytest.MonkeyPatch, evaluators: int, seed: int | None) -> None:
    converted = convert(network(), (1, 4, 4))
    shift = WEIGHT_BITS - F
    words = {name: (w + (1 << (shift - 1))) >> shift for name, w in converted.initial.items()}
    rng = np.random.default_rng(1)
    x = np.rint(rng.uniform(-2, 2, (ROWS, 1, 4, 4)) / UNIT) * UNIT
    y = np.rint(rng.uniform(-1, 1, (ROWS, 3)) / UNIT) * UNIT
    flipped: dict[int | None, list[MaskedBit]] = {}

    def spied(role: Role, shape: Any, probability: Fraction) -> MaskedBit:
        bits = coins.coins(role, shape, probability)
        flipped.setdefault(role.index, []).append(bits)
        return bits

    monkeypatch.setattr(layers_shape, "coins", spied)

    def program(role: Role) -> Any:
        attach(role, F)
        net = Network(converted.graph, words, seed)
        inputs, labels = MaskedTensor(x, src=0), MaskedTensor(y, src=1)
        optimizer = SGD(net.parameters)
        for step in range(STEPS):
            role.begin_step(step + 1)
            net(inputs).mse_loss(labels).backward()
            optimizer.step(RATE)
        before = len(flipped.get(role.index, []))
        evaluated = part(net.evaluated(inputs))
        assert len(flipped.get(role.index, [])) == before
        masks = [shares_of(remask(bits.shares())) for bits in flipped.get(role.index, [])]
        return evaluated, [part(tensor.detach()) for tensor in net.tensors.values()], masks

    results = run_lockstep(program, evaluators)
    twin = Replayed(converted.graph, seed or 0) if seed is None else PlainGraph(converted.graph, 7)
    if seed is None:
        masks = [combine_masked(shares) for shares in zip(*(r[2] for r in results), strict=True)]
        assert len(masks) == 2 * STEPS
        assert len({mask.tobytes() for mask in masks}) == len(masks)
        for first, share in ((0, 0.75), (1, 0.5)):
            found = np.concatenate([mask.ravel() for mask in masks[first::2]])
            assert abs(found.mean() - share) <= 5 * (share * (1 - share) / found.size) ** 0.5
        assert isinstance(twin, Replayed)
        twin.masks = list(masks)
    else:
        assert not flipped
    twin.load_words(words, F)
    twin.train()
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=float(RATE))
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(twin(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    # A few units a value, summed over at most twelve inputs below 2^3.
    unit = 96 * UNIT
    for place, value in enumerate(twin.state_dict().values()):
        found = opened([result[1][place] for result in results])
        assert np.abs(found - value.numpy()).max() <= STEPS * float(RATE) * 4 * unit
    twin.eval()
    with torch.no_grad():
        expected = twin(torch.from_numpy(x)).numpy()
    assert np.abs(opened([r[0] for r in results]) - expected).max() <= STEPS * 8 * unit


NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 1))


def nearly():
    return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.999999), nn.Linear(4, 1))
"""


def test_what_a_job_says_of_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, monkeypatch, drop_net=NET)
    with_net = replaced('kind = "logistic"', 'kind = "logistic"\nmodule = "drop_net:net"')
    public = with_net.replace("seed = 7", 'seed = 7\ndropout_mask = "public"')

    def shown(text: str) -> str:
        result = mpc_train("job", "check", write_job(tmp_path, text))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert "dropout by masks that nobody knows" in shown(with_net)
    assert "every node knows which values are dropped" in shown(public)
    assert (
        load_job(write_job(tmp_path, public)).digest()
        != load_job(write_job(tmp_path, with_net)).digest()
    )
    for text, message in (
        (replaced("seed = 7", 'dropout_mask = "public"'), r"train\.dropout_mask: .*no dropout"),
        (replaced("seed = 7", 'dropout_mask = "none"'), r"train\.dropout_mask"),
        (with_net.replace("drop_net:net", "drop_net:nearly"), r"_1 \(dropout\): p = 0\.999999"),
    ):
        with pytest.raises(JobError, match=message):
            load_job(write_job(tmp_path, text))


@pytest.mark.slow
def test_in_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three evaluators agree on what they draw together, over channels that the dealer is not in.

    The training in the clear draws masks of its own, so that only how good it gets is compared: of
    25 held-out rows, a few may go either way from run to run.
    """
    write_modules(tmp_path, monkeypatch, drop_net=NET)
    export(tmp_path, "drop_net:net", "2")
    text = replaced('kind = "logistic"', 'kind = "logistic"\ngraph = "model.json"')
    path = write_job(tmp_path, text.replace("epochs = 4", "epochs = 12"))
    write_tables(tmp_path, fitting_tables())
    record = trained(path, "--compare")
    assert record["metrics"]["accuracy"] > 0.7
    assert record["metrics"]["accuracy"] == pytest.approx(
        record["twin_metrics"]["accuracy"], abs=0.17
    )
    assert record["max_weight_difference"] > 0.001
