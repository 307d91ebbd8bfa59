"""The table of a service's figures."""

from __future__ import annotations

from tests.bench.serve import MODELS, RTT_MS, TABLE, Case, markdown, missed


def test_fewer_questions_are_at_least_one_for_each_client() -> None:
    case = Case("net_a", clients=16, questions=1600)
    assert case.fewer(1.0) == case
    assert case.fewer(0.02).questions == 32
    assert case.fewer(0.0001).questions == 16
    assert all(case.fewer(0.02).questions % case.clients == 0 for case in TABLE)


def test_every_model_is_measured_near_and_far_and_by_many() -> None:
    for model in MODELS:
        mine = [case for case in TABLE if case.model == model]
        assert {case.rtt_ms for case in mine} == {None, RTT_MS}
        assert {case.rows for case in mine} == {1, 128}
        assert max(case.clients for case in mine) == 16


def test_a_bound_that_is_missed_is_said() -> None:
    case = Case("net_a", 128, median_ms=20, p99_ms=40, rate=8000)
    found = {"median_ms": 19.0, "p99_ms": 41.0, "rate": 7000.0, "plain_ms": 1.0, "cpu_ms": {"a": 2}}
    assert missed(case, found) == ["p99_ms 41.0 > 40", "7000 rows/s < 8000"]
    *_, row = markdown([(case, found)])
    assert row.startswith("| net_a | 128 | 1 | loopback | 19 ms | 41 ms | 7,000 |")
