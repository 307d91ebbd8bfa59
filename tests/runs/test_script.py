"""CrypTen scripts in real processes: what they compute, and what is said when they go wrong."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mpc_train.admission.load import job_from_bytes
from mpc_train.errors import JobError
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "crypten_script"
HEAD = "import torch\nfrom mpc_train.scripts import crypten\ncrypten.init()\n"
RANK = "crypten.communicator.get().get_rank()"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("data"))
    runpy.run_path(str(folder / "make_data.py"), run_name="__main__")
    return folder


def launched(script: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    run_dir = script.with_suffix(".run")
    argv = [sys.executable, str(ROOT / "launch.py"), "--script", str(script)]
    return subprocess.run(
        [*argv, "--run-dir", str(run_dir), *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def data_of(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    alice, bob, labels = (
        torch.from_numpy(np.load(folder / "data" / f"{name}_{part}.npy"))
        for name in ("alice", "bob", "labels")
    )
    return torch.cat([alice, bob], 1), labels


@pytest.mark.slow
def test_logistic_regression_is_that_of_pytorch(example: Path) -> None:
    ended = launched(example / "logistic_regression.py")
    assert ended.returncode == 0, ended.stderr
    torch.manual_seed(1)
    model = torch.nn.Linear(30, 1).double()
    x, y = data_of(example, "train")
    for _ in range(8):
        for start in range(0, 480, 60):
            rows = slice(start, start + 60)
            model.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows]).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.5 * parameter.grad)
    x, y = data_of(example, "test")
    accuracy = ((model(x) > 0) == (y > 0.5)).double().mean().item()
    *_, told, weight = ended.stdout.strip().splitlines()
    assert told == f"accuracy on 89 other rows: {accuracy:.4f}"
    assert float(weight.rpartition(" ")[2]) == pytest.approx(model.weight[0, 0].item(), abs=1e-3)
    assert "2 evaluators and a dealer" in ended.stderr


@pytest.mark.slow
def test_a_small_network_is_that_of_pytorch(example: Path) -> None:
    ended = launched(example / "small_network.py", "--evaluators", "3")
    assert ended.returncode == 0, ended.stderr
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(30, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = data_of(example, "train")
    losses = []
    for _ in range(5):
        for start in range(0, 480, 60):
            rows = slice(start, start + 60)
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    x, y = data_of(example, "test")
    accuracy = ((model(x) > 0.5) == (y > 0.5)).double().mean().item()
    *epochs, told = ended.stdout.strip().splitlines()
    shown = [float(line.rpartition(" ")[2]) for line in epochs]
    np.testing.assert_allclose(shown, losses, atol=2e-3)
    assert float(told.rpartition(" ")[2]) == pytest.approx(accuracy, abs=1.5 / 89)


WRONG = {
    "syntax": ("x = (\n", 3, "script.py:1: not Python"),
    "exception": (HEAD + "\n1 / 0\n", 3, "script.py:5: ZeroDivisionError: division by zero"),
    "the dealer's NaN": (
        HEAD + "int(crypten.cryptensor(torch.ones(2)).sum().get_plain_text())\n",
        3,
        "dealer: {folder}/script.py:4: ValueError: cannot convert float NaN to integer; this is",
    ),
    "exit": (HEAD + "raise SystemExit(4)\n", 3, "ended with exit status 4"),
    "not offered": (
        HEAD + "crypten.cryptensor(torch.ones(2), src=0).log()\n",
        3,
        "script.py:4: NotImplementedError: log",
    ),
    "not of CrypTen": (HEAD + "crypten.save\n", 3, "script.py:4: AttributeError: crypten.save"),
    "no value": (
        HEAD
        + "x = crypten.cryptensor(torch.ones(2, 1), src=0, requires_grad=True)\n"
        + "crypten.nn.BCEWithLogitsLoss()(x, crypten.cryptensor(torch.ones(2, 1), src=1))"
        ".get_plain_text()\n",
        3,
        "script.py:5: NotImplementedError: the value of this loss is not computed",
    ),
    "other ways": (
        HEAD
        + "x = crypten.cryptensor(torch.ones(2), src=0)\n"
        + f"y = x * x if {RANK} == 1 else x\n"
        + "print(y.get_plain_text())\n",
        9,
        "script.py:6: the nodes took different paths",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.slow  # a run costs four processes their start
def test_what_goes_wrong_is_said_with_its_line(tmp_path: Path, kind: str) -> None:
    text, status, said = WRONG[kind]
    said = said.replace("{folder}", str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text(text)
    ended = launched(script, "--format", "json")
    record = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, said in f"{record['status']}: {record['message']}") == (
        status,
        True,
    ), ended


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    ended = launched(tmp_path / "gone.py")
    assert ended.returncode == 3 and "gone.py: cannot be read (No such file" in ended.stderr
    assert not (tmp_path / "gone.run").exists()


@pytest.mark.slow
def test_the_dealer_is_told_nothing(tmp_path: Path) -> None:
    """Parties see what is opened and the dealer NaN; what a party passes for another is nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        HEAD
        + f"rank = {RANK}\n"
        + "x = crypten.cryptensor(torch.full((2,), float(rank + 1)), src=1)\n"
        + "print(f'rank {rank}:', x.get_plain_text().tolist(), end='')\n"
    )
    ended = launched(script)
    assert ended.returncode == 0, ended.stderr
    logs = {
        name: (tmp_path / "script.run" / "logs" / f"{name}.stdout.log").read_text().splitlines()[0]
        for name in ("party-0", "party-1", "dealer")
    }
    assert logs == {
        "party-0": "rank 0: [2.0, 2.0]",
        "party-1": "rank 1: [2.0, 2.0]",
        "dealer": "rank 2: [nan, nan]",
    }
    assert ended.stdout.strip() == "rank 0: [2.0, 2.0]"


def test_a_node_takes_no_script_for_a_job() -> None:
    with pytest.raises(JobError, match="the proposed job cannot be read"):
        job_from_bytes(HEAD.encode())
