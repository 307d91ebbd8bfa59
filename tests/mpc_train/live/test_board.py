"""What a run's events come to, on a page, in metrics and in a terminal."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from mpc_train.live.board import MAX_EVENTS, MAX_POINTS, MAX_TEXT, Board
from mpc_train.live.metrics import exposition

NAMES = ("ann", "bob", "registry")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    made = Board(NAMES, clock)
    made.event("gathering", {"here": (), "missing": NAMES, "left_s": 9})
    for name in NAMES:
        made.event("arrived", {"node": name})
    made.event("proposed", {"job": "study", "digest": "ab" * 32})
    made.event("agreed", {"nodes": NAMES})
    made.event("started", {"nodes": NAMES})
    return made


def progress(board: Board, node: str, step: int, **more: Any) -> None:
    fields = {"step": step, "steps": 100, "phase": "training", "bytes_sent": 1000 * step} | more
    board.event("progress", {"node": node, "fields": fields})


def test_the_slowest_node_says_how_far_a_run_is(board: Board, clock: Clock) -> None:
    for name in NAMES:
        progress(board, name, 1)
    clock.now += 10
    for name, step in zip(NAMES, (21, 30, 40), strict=True):
        progress(board, name, step)
    state = board.snapshot()
    assert (state["phase"], state["job"], state["step"], state["steps"]) == (
        *("running", "study", 21, 100),
    )
    assert state["rate"] == pytest.approx(2)
    assert state["left_s"] == pytest.approx(79 / 2)
    assert state["bytes_sent"] == 91_000
    assert {node["state"] for node in state["nodes"].values()} == {"computing"}
    assert state["progress"][-1] == (10.0, 21)
    json.dumps(state)


def test_a_session_that_breaks_off(board: Board) -> None:
    progress(board, "ann", 50)
    board.event("suspended", {"node": "bob", "code": "lost"})
    state = board.snapshot()
    assert (state["phase"], state["suspended"], state["rate"]) == ("suspended", 1, 0)
    assert [node["state"] for node in state["nodes"].values()] == [
        "returning",
        "missing",
        "returning",
    ]
    assert "bob was lost" in state["events"][-1]["text"]
    board.event("gathering", {"here": ("ann", "registry"), "missing": ("bob",), "left_s": 9})
    board.event("started", {"nodes": NAMES})
    assert board.snapshot()["phase"] == "running"


def test_how_a_run_ends(board: Board) -> None:
    board.event("done", {"files": []})
    assert {node["state"] for node in board.snapshot()["nodes"].values()} == {"done"}
    board.ended("disk \x1b[31mfull")
    state = board.snapshot()
    assert state["phase"] == "failed"
    assert "\x1b" not in state["message"]
    assert state["events"][-1]["text"] == state["message"]


def test_what_peers_say_is_bounded_and_steers_nothing(board: Board) -> None:
    for number in range(10 * MAX_EVENTS):
        board.event("left", {"node": f"\x1b]0;{number}" + "x" * 10 * MAX_TEXT, "code": "lost"})
    for step in range(10 * MAX_POINTS):
        progress(board, "ann", step, phase="training")
        board.event("loss", {"step": step, "loss": 1.0})
    progress(board, "ann", 5, phase="p" * 10 * MAX_TEXT)
    state = board.snapshot()
    assert len(state["events"]) == MAX_EVENTS
    assert all(
        len(event["text"]) <= MAX_TEXT and "\x1b" not in event["text"] for event in state["events"]
    )
    assert len(state["progress"]) <= MAX_POINTS + 1
    assert len(state["losses"]) <= MAX_POINTS + 1
    assert len(state["nodes"]["ann"]["phase"]) == MAX_TEXT
    assert {*state["nodes"]} == {*NAMES}


def test_a_point_is_kept_for_each_part_of_a_long_run(board: Board, clock: Clock) -> None:
    for step in range(1, 5001):
        clock.now += 1
        progress(board, "ann", step)
    points = board.snapshot()["progress"]
    assert len(points) > MAX_POINTS / 3
    gaps = {later - first for (first, _), (later, _) in pairwise(points)}
    assert len(gaps) <= 2


def test_metrics_for_prometheus(board: Board) -> None:
    pytest.importorskip("prometheus_client")
    progress(board, "ann", 7)
    found = exposition(board.snapshot())
    assert found is not None
    kind, text = found
    assert kind.startswith("text/plain")
    lines = text.decode().splitlines()
    assert 'mpc_train_node_step{job_name="study",node="ann"} 7.0' in lines
    assert 'mpc_train_phase{job_name="study",mpc_train_phase="running"} 1.0' in lines
    assert 'mpc_train_phase{job_name="study",mpc_train_phase="done"} 0.0' in lines


def serving(board: Board, node: str, rows: int, **more: Any) -> None:
    fields = {"phase": "serving", "questions": rows // 16, "rows": rows, "batches": 3}
    fields |= {"refused": 2, "waiting": 1, "median_ms": 8.5, "slow_ms": 20.0, "rounds": 50} | more
    board.event("progress", {"node": node, "fields": fields})


def test_a_service_tells_what_it_has_answered(board: Board, clock: Clock) -> None:
    assert board.snapshot()["service"] is None
    serving(board, "ann", 1600)
    clock.now += 100
    serving(board, "ann", 1600)
    for more in (600, 1200):
        clock.now += 30
        serving(board, "ann", 1600 + more)
        serving(board, "bob", 1600, slow_ms=35.0, median_ms=float("nan"), waiting=True)
    found = board.snapshot()
    counted = {"questions": 175, "rows": 2800, "batches": 3, "refused": 2, "waiting": 1}
    assert found["service"] == counted | {"median_ms": 8.5, "slow_ms": 35.0, "rate": 20.0}
    assert (found["rounds"], found["step"]) == (50, 0)
    clock.now += 120
    assert board.snapshot()["service"]["rate"] == 0
    shown = exposition(found)
    if shown is not None:
        lines = shown[1].decode().splitlines()
        assert 'mpc_train_service_rows{job_name="study",node="ann"} 2800.0' in lines
        label = '{job_name="study",node="bob"}'
        assert f"mpc_train_service_latency_99_seconds{label} 0.035" in lines
        assert not any(
            line.startswith('mpc_train_service_latency_median_seconds{job_name="study",node="bob')
            for line in lines
        )


def test_a_service_that_starts_again_goes_on_counting(board: Board, clock: Clock) -> None:
    serving(board, "ann", 1600)
    board.event("suspended", {"node": "bob", "code": "lost"})
    clock.now += 5
    board.event("started", {"nodes": NAMES})
    serving(board, "ann", 16, refused=0, waiting=0)
    found = board.snapshot()["service"]
    assert (found["rows"], found["questions"], found["refused"], found["waiting"]) == (
        *(1616, 101, 2, 0),
    )


def test_another_session_goes_on_counting(board: Board) -> None:
    """A session counts from 0, and tells the losses since its checkpoint once more."""
    said = {"phase": "training", "step": 40, "steps": 100, "bytes_sent": 100, "rounds": 7}
    board.event("progress", {"node": "ann", "fields": said})
    for step in (20, 40):
        board.event("loss", {"step": step, "loss": 0.5})
    board.event("suspended", {"node": "bob", "code": "lost"})
    board.event("started", {"nodes": NAMES})
    board.event("progress", {"node": "ann", "fields": {**said, "bytes_sent": 10, "rounds": 1}})
    board.event("loss", {"step": 40, "loss": 0.5})
    found = board.snapshot()
    assert found["bytes_sent"] == 110 and found["rounds"] == 8
    assert [step for step, _ in found["losses"]] == [20, 40]


@pytest.mark.parametrize(("code", "state"), [("lost", "lost"), ("data", "failed")])
def test_who_ended_a_run_is_seen(board: Board, code: str, state: str) -> None:
    board.event("aborted", {"node": "bob", "code": code})
    board.ended("bob is gone", 8)
    found = board.snapshot()
    assert found["nodes"]["bob"]["state"] == state
    assert found["nodes"]["ann"]["state"] == "stopped"
    said = {"lost": "bob was lost", "failed": "bob ended the run (data)"}[state]
    assert said in [each["text"] for each in found["events"]]
    assert exposition(found) is not None


def test_time_stops_with_the_run(board: Board, clock: Clock) -> None:
    clock.now += 5
    board.ended()
    clock.now += 500
    assert board.snapshot()["seconds"] == 5


def test_progress_of_somebody_else_is_nobody_s(board: Board) -> None:
    """A recipient that runs no node of the job is connected, too."""
    progress(board, "rita", 10**9)
    assert board.snapshot()["step"] == 0
    assert board.snapshot()["nodes"]["ann"]["step"] == 0


def test_a_node_whose_connection_broke_is_seen(board: Board) -> None:
    """The run stands still for as long as it is waited for."""
    board.event("reconnecting", {"node": "bob", "seconds": 0.0})
    found = board.snapshot()
    assert found["nodes"]["bob"]["state"] == "reconnecting"
    assert found["nodes"]["ann"]["state"] == "computing"
    assert "connection to bob broke" in found["events"][-1]["text"]
    assert exposition(found) is not None
    board.event("reconnected", {"node": "bob", "seconds": 3.0})
    found = board.snapshot()
    assert found["nodes"]["bob"]["state"] == "computing"
    assert "connection to bob is back" in found["events"][-1]["text"]
    # A party hears of several nodes, which are not its own.
    board.event("reconnecting", {"nodes": ("cleo", "desk")})
    assert "cleo, desk" in board.snapshot()["events"][-1]["text"]


def test_a_dealer_that_is_ahead_does_not_slow_the_others(board: Board, clock: Clock) -> None:
    board.event("suspended", {"node": "bob", "code": "lost"})
    board.event("started", {"nodes": NAMES})
    progress(board, "registry", 60)
    for name in ("ann", "bob"):
        progress(board, name, 41)
    clock.now += 10
    for name in NAMES:
        progress(board, name, 70)
    assert board.snapshot()["rate"] == pytest.approx(3)
