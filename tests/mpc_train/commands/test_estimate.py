"""`mpc-train estimate` prints what a job will cost."""

from pathlib import Path

import pytest

from tests.support.commands import as_json, mpc_train
from tests.support.jobs import write_job

LINK = ("--rtt-ms", "10", "--mbit-s", "8")


def test_phases_and_nodes_add_up(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    found = as_json("estimate", job, *LINK)
    assert list(found["phases"]) == ["share", "train", "evaluate", "reveal"]
    assert set(found["nodes"]) == {"ann", "bob", "cleo", "registry"}
    phases = found["phases"].values()
    assert found["rounds"] == sum(phase["rounds"] for phase in phases) > found["training_rounds"]
    for name, node in found["nodes"].items():
        assert node["bytes_sent"] == sum(phase["bytes_sent"][name] for phase in phases)
    assert found["dealer_bytes"] == found["nodes"]["registry"]["bytes_sent"]
    waits = sum(phase["wait_seconds"] for phase in phases)
    assert waits == pytest.approx(found["rounds"] * 0.010, abs=0.01)


def test_more_rows_send_more(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    few = as_json("estimate", job, *LINK)["phases"]["share"]["bytes_sent"]
    more = as_json("estimate", job, *LINK, "--rows", "ann=400")["phases"]["share"]["bytes_sent"]
    assert more["ann"] - few["ann"] == 360 * 3 * 8 * 2  # two features and a label, to two others
    assert more["bob"] == few["bob"]


def test_text_names_every_node(tmp_path: Path) -> None:
    shown = mpc_train("estimate", write_job(tmp_path), *LINK).stdout
    assert all(word in shown for word in ("ann", "registry", "total", "memory", "round trips"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rows", "ann"), "OWNER=N"),
        (("--rows", "zoe=5"), "its owners are ann, bob, cleo"),
        (("--rows", "ann=0"), "OWNER=N"),
        (("--joined", "5"), "joins no records"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    shown = mpc_train("estimate", write_job(tmp_path), *LINK, *words)
    assert shown.exit_code == 3
    assert said in shown.stderr
