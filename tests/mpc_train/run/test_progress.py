"""How often a log and a machine are told how a run is going, by a clock of the test's own."""

import itertools
import json
import sys

import pytest

from mpc_train.checkpoints.keeper import token_of
from mpc_train.commands.common import Format
from mpc_train.commands.nodes import Events
from mpc_train.run.pacing import LINE_INTERVAL_S
from mpc_train.run.progress import ProgressView


class Clock:
    """What `time.monotonic` is in the modules that pace."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("progress", "pacing"):
        monkeypatch.setattr(f"mpc_train.run.{module}.time.monotonic", made)
    return made


def step(view: ProgressView, number: int, steps: int, node: str = "ann") -> None:
    fields = {"step": number, "steps": steps, "phase": "training", "bytes_sent": 10}
    view.event("progress", {"node": node, "fields": fields})


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def numbers(said: list[str]) -> list[int]:
    return [int(line.split()[1].split("/")[0]) for line in said if line.startswith("training ")]


def test_a_log_has_a_line_for_each_twentieth(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = ProgressView()
    view.event("started", {})
    for number in range(1, 1001):
        clock.now += 2
        step(view, number, 1000)
    said = lines(capsys)
    # 50 steps take 100 s: a minute comes first.
    assert numbers(said)[:3] == [30, 60, 90] and numbers(said)[-1] == 1000
    view = ProgressView()
    view.event("started", {})
    for number in range(1, 1001):
        clock.now += 1 / 8
        step(view, number, 1000)
    assert numbers(lines(capsys)) == list(range(50, 1001, 50))


def test_no_two_lines_stand_within_a_second_but_the_last(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = ProgressView()
    view.event("started", {})
    for number in range(1, 101):
        clock.now += 1 / 32
        step(view, number, 100)
    assert numbers(lines(capsys)) == [32, 64, 96, 100]
    view.event("started", {})
    for number in range(1, 101):
        step(view, number, 100)
    assert numbers(lines(capsys)) == [100]


@pytest.mark.parametrize("steps", [1, 3, 7, 40, 260, 3000])
@pytest.mark.parametrize("pause", [0.001, 0.5, 3.0, 90.0])
def test_there_is_never_more_than_a_minute_without_a_line(
    clock: Clock, capsys: pytest.CaptureFixture[str], steps: int, pause: float
) -> None:
    view, told = ProgressView(), [clock.now]
    view.event("started", {})
    capsys.readouterr()
    for number in range(1, steps + 1):
        clock.now += pause
        view.look()
        step(view, number, steps)
        if lines(capsys):
            told.append(clock.now)
    assert max(b - a for a, b in itertools.pairwise(told)) <= max(60 + pause, pause)
    assert told[-1] == clock.now
    assert len(told) <= 22 + 2 * steps * pause / 60


def test_silence_of_a_minute_is_said(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    view.look()
    clock.now += 600
    view.look()
    assert lines(capsys) == []  # others are waited for, who says so is another
    view.event("started", {})
    clock.now += 59
    view.look()
    assert len(lines(capsys)) == 1
    clock.now += 2
    view.look()
    view.look()
    assert lines(capsys) == ["still training: no news for 1 min 1 s"]
    step(view, 5, 5)
    view.event("progress", {"node": "ann", "fields": {"phase": "evaluating"}})
    clock.now += 61
    view.look()
    assert lines(capsys)[1:] == ["evaluating", "still evaluating: no news for 1 min 1 s"]


def test_evaluation_begins_with_the_slowest_node(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = ProgressView()
    view.event("started", {})
    for node, number in (("dealer", 9), ("ann", 3)):
        step(view, number, 9, node)
    capsys.readouterr()
    clock.now += 100
    # What a node reports at once is merged into one event.
    last = {"step": 9, "steps": 9, "phase": "evaluating"}
    view.event("progress", {"node": "dealer", "fields": last})
    assert lines(capsys) == []
    view.event("progress", {"node": "ann", "fields": last})
    fold = {"phase": "evaluating", "fold": 1, "folds": 5}
    view.event("progress", {"node": "dealer", "fields": fold})
    view.event("progress", {"node": "ann", "fields": last | fold})
    said = lines(capsys)
    assert numbers(said) == [9]
    assert said[1:] == ["evaluating", "evaluating, fold 1 of 5"]


def test_a_log_is_looked_after_while_it_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of `shown` says it, without an event."""
    from tests.support.patience import wait_until

    monkeypatch.setattr("mpc_train.run.progress.LOOK_S", 0.001)
    monkeypatch.setattr("mpc_train.run.progress.LINE_INTERVAL_S", 0.0)
    said: list[str] = []
    monkeypatch.setattr("mpc_train.run.progress.say", lambda text, **_: said.append(text))
    view = ProgressView()
    with view.shown():
        view.event("started", {})
        wait_until(lambda: any("still training" in line for line in said), "a line")
    count = len(said)
    view.look()
    assert len(said) == count + 1  # by us, and by no thread


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_machines_get_a_progress_event_a_second(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = Events(Format.json)
    nodes = ("ann", "bob", "registry")
    for number in range(1, 1001):
        clock.now += 0.1
        for node in nodes:
            fields = {"step": number, "steps": 1000, "phase": "training"}
            passed("progress", {"node": node, "fields": fields})
    told = events(capsys)
    assert len(told) <= 100 + 2 * len(nodes)
    for node in nodes:
        mine = [event["fields"] for event in told if event["node"] == node]
        assert len(mine) >= 25  # they take turns
        assert mine[-1] == {"step": 1000, "steps": 1000, "phase": "training"}


def test_each_stage_has_its_first_event_and_its_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = Events(Format.json)
    for done in range(0, 101, 10):
        passed("reading", {"done": done, "total": 100, "unit": "rows", "seconds_left": None})
    for fields in (
        {"phase": "sharing", "rows": 5, "of_rows": 10},
        {"phase": "sharing", "rows": 10, "of_rows": 10},
        {"phase": "training", "step": 1, "steps": 9},
        {"phase": "training", "step": 2, "steps": 9},
        {"phase": "evaluating", "step": 3, "steps": 9},  # stopped early
        {"phase": "evaluating"},
    ):
        passed("progress", {"fields": fields})
    told = events(capsys)
    assert [event["done"] for event in told if event["event"] == "reading"] == [0, 100]
    said = [event["fields"] for event in told if event["event"] == "progress"]
    assert said == [
        {"phase": "sharing", "rows": 5, "of_rows": 10},
        {"phase": "sharing", "rows": 10, "of_rows": 10},
        {"phase": "training", "step": 1, "steps": 9},
        {"phase": "evaluating", "step": 3, "steps": 9},
    ]


def test_what_is_no_progress_is_always_passed_on(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = Events(Format.json)
    for node in ("ann", "bob", "cleo"):
        passed("arrived", {"node": node})
    assert [event["node"] for event in events(capsys)] == ["ann", "bob", "cleo"]
    assert not sys.stderr.isatty()


def test_waiting_says_who_is_here_and_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    view.event("gathering", {"here": (), "missing": ("ann", "bob"), "left_s": 600})
    view.event("gathering", {"here": ("ann",), "missing": ("bob",), "left_s": 45})
    view.event("left", {"node": "ann"})
    view.event("rotated", {"node": "ann"})
    trouble = "nothing listens on port 7700 of desk: check the port"
    address = "tcp://desk:7700"
    view.event("waiting", {"address": address, "trouble": trouble, "limit_s": 600.0})
    unreachable = {"node": "ann", "peer": "bob", "address": "tcp://bob:7701"}
    view.event("unreachable", {**unreachable, "trouble": "bob does not answer on port 7701"})
    view.event("unreachable", unreachable)
    assert lines(capsys) == [
        "here: nobody; missing: ann, bob; waiting up to 10 min 0 s for them",
        "here: ann; missing: bob; waiting up to 45 s for them",
        "ann has left; it may join again",
        "ann has new keys, which the ones before have signed",
        f"no coordinator yet at {address}: {trouble}; trying for 10 min 0 s in all",
        "ann cannot dial bob at tcp://bob:7701 (bob does not answer on port 7701); their frames go "
        "through the coordinator, sealed",
        "ann cannot dial bob at tcp://bob:7701; their frames go through the coordinator, sealed",
    ]


def test_a_lost_node_is_named_and_restored_steps_are_no_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = ProgressView()
    view.event("started", {"resumed": ""})
    clock.now += 10
    step(view, 100, 1000)
    view.event("suspended", {"by": "bob", "code": "lost", "limit_s": 600})
    clock.now += 30
    view.event("started", {"resumed": token_of(350, False, bytes(32)).hex()})
    for number in range(351, 402):
        clock.now += 1
        step(view, number, 1000)
    said = lines(capsys)
    assert said[2] == (
        "bob was lost (its process ended, or its machine or network fell silent). All connect "
        "again and wait for it, for up to 10 min 0 s; then the run goes on from its newest "
        "checkpoint, if there is one"
    )
    assert said[3] == "all nodes are connected to each other; training goes on after step 350"
    assert said[-1] == "training 401/1000  1.0 steps/s  9 min 59 s left  10 B sent"


def test_a_dealer_that_is_ahead_does_not_slow_the_others(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reports first; and the first step, which waits for the sharing, tells no speed."""
    view = ProgressView()
    view.event("started", {"resumed": token_of(350, False, bytes(32)).hex()})
    clock.now += 30
    for node, number in (("dealer", 380), ("ann", 351)):
        fields = {"step": number, "steps": 1000, "bytes_sent": 10}
        view.event("progress", {"node": node, "fields": fields})
    clock.now += 10
    for node, number in (("dealer", 480), ("ann", 451)):
        fields = {"step": number, "steps": 1000, "bytes_sent": 10}
        view.event("progress", {"node": node, "fields": fields})
    said = lines(capsys)
    assert said[1:] == [
        "training 380/1000  10 B sent",
        "training 451/1000  10.0 steps/s  55 s left  20 B sent",
    ]


@pytest.mark.timeout(30)
def test_a_service_says_what_it_answers(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    view.serves = True
    view.event("started", {})
    for number in range(1, 4):
        clock.now += LINE_INTERVAL_S + 1
        served = {"phase": "serving", "questions": number, "rows": 16 * number, "refused": 0}
        view.event("progress", {"node": "ann", "fields": served})
    said = lines(capsys)
    assert said[0].endswith("the service opens") and said[1] == "the service is open"
    assert said[-1] == "3 questions of 48 rows answered"
    view = ProgressView()
    view.serves = True
    view.event("started", {})
    for number in (1000, 2000):
        clock.now += LINE_INTERVAL_S + 1
        view.event("progress", {"node": "dora", "fields": {"phase": "dealing", "units": number}})
    assert lines(capsys)[-1] == "2,000 units of material made"
