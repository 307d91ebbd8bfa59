"""What an evaluator of a service tells those who watch it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mpc_train.live.board import SERVED
from mpc_train.live.metrics import SERVICE
from mpc_train.serving.figures import KEPT_TIMES, NEWS_S, Figures

DASHBOARD = Path(__file__).resolve().parents[3] / "examples" / "deploy" / "grafana.json"


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_times_are_those_since_a_question_was_heard() -> None:
    clock = Clock()
    figures = Figures(clock)
    for each in range(1, 201):
        figures.answered(16, clock.now - each / 1000)
    said = figures.news(3, 40)
    assert said is not None
    assert (said["questions"], said["rows"], said["waiting"], said["rounds"]) == (200, 3200, 3, 40)
    assert (said["median_ms"], said["slow_ms"]) == (100, 198)


def test_only_the_newest_times_are_kept() -> None:
    clock = Clock()
    figures = Figures(clock)
    figures.answered(1, 0.0)
    for _ in range(KEPT_TIMES):
        figures.answered(1, clock.now - 0.002)
    said = figures.news(0, 0)
    assert said is not None
    assert (said["questions"], said["slow_ms"]) == (KEPT_TIMES + 1, 2)


def test_news_is_told_when_there_is_any() -> None:
    clock = Clock()
    figures = Figures(clock)
    first = figures.news(0, 0)
    assert first is not None
    assert "median_ms" not in first
    assert figures.news(0, 0) is None
    figures.refused += 1
    assert figures.news(0, 0) is None  # too soon
    clock.now += NEWS_S
    last = figures.news(0, 0)
    assert last is not None
    assert last["refused"] == 1
    clock.now += NEWS_S
    assert figures.news(0, 0) is None


def test_everything_that_is_told_is_shown() -> None:
    """By the page, in metrics, and on the dashboard what it asks for exists."""
    figures = Figures()
    figures.answered(1, 0.0)
    said = figures.news(0, 0)
    assert said is not None
    assert set(said) - {"rounds"} == set(SERVED) == set(SERVICE)
    known = {metric for metric, _, _ in SERVICE.values()}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel.get("targets", [])
        for name in re.findall(r"mpc_train_service_(\w+)", target["expr"])
    }
    assert asked
    assert asked <= known
