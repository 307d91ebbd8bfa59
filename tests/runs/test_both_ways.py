"""The example that trains over shares and in federated rounds, as `make demo` runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.mark.slow  # two whole trainings of five and more processes
@pytest.mark.timeout(1200)
def test_both_ways_say_what_they_cost_and_reveal(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "breast_cancer" / "make_data.py"], check=True)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "federated" / "both_ways.py"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) == 3:
            lines[cells[0]] = cells[1:]
    assert lines["sees a model before the end"] == ["nobody", "each hospital, after every round"]
    assert lines["gets the model"] == [
        "hospital-a, study-office",
        "hospital-a, hospital-b, hospital-c",
    ]
    assert lines["everybody learns"] == ["accuracy, auc, range", "within_clip"]
    for right in lines["right on rows that were held out"]:
        assert 95 < float(right.removesuffix("%")) <= 100
    for apart in lines["from the same training in the clear"]:
        (number,) = re.findall(r"^\S+", apart)
        assert 0 < float(number) < 2**-10
