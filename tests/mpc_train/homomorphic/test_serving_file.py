"""The file of a server: every fault at once, with its line."""

from pathlib import Path

import pytest

from mpc_train.errors import ConfigError
from mpc_train.homomorphic.serving_file import load_serving_file

GOOD = """
listen = "tcp://0.0.0.0:7800"
[models.mortality]
model = "runs/study"
clients = ["clinic-b", "clinic-a"]
rows_a_day = 40960
[models.stay]
model = "vault:stay"
clients = ["clinic-a"]
rows_a_day = 4096
"""


def read(folder: Path, text: str) -> object:
    path = folder / "serving.toml"
    path.write_text(text)
    return load_serving_file(path)


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    path.write_text(GOOD)
    found = load_serving_file(path)
    assert found.clients == ("clinic-a", "clinic-b")
    assert found.models["mortality"].path == tmp_path / "runs/study"
    assert (found.models["stay"].path, found.models["stay"].stored) == (None, "stay")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tcp://0.0.0.0:7800", "0.0.0.0:7800", "2: listen: write tcp"),
        ("tcp://0.0.0.0:7800", "tcp://0.0.0.0:78000", "listen: write tcp"),
        ("models.mortality", 'models."Of Death"', "is not a name"),
        ('"clinic-b", "clinic-a"', "", "5: models.mortality.clients: at least one"),
        ('"clinic-b", "clinic-a"', '"a", "a"', "each once"),
        ('"clinic-b", "clinic-a"', '"A"', "is not a name"),
        ("rows_a_day = 40960", "rows_a_day = 5", "rows_a_day: from 4096, one request"),
        ("rows_a_day = 40960", "", "rows_a_day"),
        ("vault:stay", "vault:", "a folder that mpc-train open wrote"),
        ("listen", "listens", "unknown key"),
    ],
)
def test_faults_name_line_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("tcp://", "").replace("40960", "1").replace('"vault:stay"', '"vault:"')
    with pytest.raises(ConfigError, match="3 faults"):
        read(tmp_path, text)
