"""Rows a day: counted before they are used, kept over restarts, and not given anew by a clock."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.errors import ConfigError, QueryRefusedError
from mpc_train.serving import allowance
from mpc_train.serving.allowance import SHARE, Allowance
from parties.files import write_atomic

DAY = date(2026, 1, 1)


class Calendar:
    def __init__(self) -> None:
        self.day = DAY

    def __call__(self) -> date:
        return self.day


def fits(counts: Allowance, client: str, rows: int, most: int, model: str = "risk") -> bool:
    try:
        counts.take(client, model, rows, most)
    except QueryRefusedError as error:
        assert error.code == "quota"
        return False
    return True


def used_up(counts: Allowance, most: int, client: str = "ann") -> int:
    """How many single rows are left."""
    return sum(fits(counts, client, 1, most) for _ in range(most + 1))


def test_rows_are_counted_by_client_model_and_day(tmp_path: Path) -> None:
    calendar, path = Calendar(), tmp_path / "quota.json"
    counts = Allowance(path, calendar)
    assert fits(counts, "ann", 4096, 8192) and fits(counts, "ann", 4096, 8192)
    with pytest.raises(QueryRefusedError, match=r"8192 rows on one day.*8192 and now 1 on 2026"):
        counts.take("ann", "risk", 1, 8192)
    assert fits(counts, "ann", 4096, 8192, "dose") and fits(counts, "bob", 4096, 8192)
    # Another process goes on from there; a clock that goes back changes nothing.
    calendar.day -= timedelta(days=1)
    assert not fits(counts, "ann", 1, 8192)
    assert not fits(Allowance(path, calendar), "ann", 4096, 8192)
    calendar.day += timedelta(days=2)
    assert fits(Allowance(path, calendar), "ann", 4096, 8192)
    assert path.stat().st_mode & 0o077 == 0


def test_a_clock_that_goes_back_after_a_day_has_begun(tmp_path: Path) -> None:
    calendar, path = Calendar(), tmp_path / "quota.json"
    assert fits(Allowance(path, calendar), "ann", 10, 10)
    calendar.day += timedelta(days=1)
    counts = Allowance(path, calendar)
    assert fits(counts, "ann", 1, 10)
    calendar.day -= timedelta(days=1)  # of which the file says nothing any more
    assert used_up(counts, 10) == 9
    assert used_up(Allowance(path, calendar), 10) == 0


def test_rows_that_are_left_are_those_that_are_given_out(tmp_path: Path) -> None:
    calendar, path = Calendar(), tmp_path / "quota.json"
    counts = Allowance(path, calendar)
    assert counts.left("ann", "risk", 100) == 100
    taken = counts.take("ann", "risk", 16, 100)
    assert not fits(counts, "ann", 85, 100)
    assert counts.left("ann", "risk", 100) == 84 and counts.left("bob", "risk", 100) == 100
    assert counts.left("ann", "risk", 10) == 0  # its owners allow fewer than were asked
    counts.refund(taken)
    assert counts.left("ann", "risk", 100) == 100
    assert fits(counts, "ann", 100, 100)
    calendar.day += timedelta(days=1)
    assert counts.left("ann", "risk", 100) == 100


def test_a_question_that_is_too_long_costs_nothing(tmp_path: Path) -> None:
    counts = Allowance(tmp_path / "quota.json")
    assert not fits(counts, "ann", 11, 10)
    assert used_up(counts, 10) == 10


def test_most_questions_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def counted(path: Path, data: bytes) -> None:
        written.append(len(data))
        write_atomic(path, data)

    monkeypatch.setattr(allowance, "write_atomic", counted)
    counts = Allowance(tmp_path / "quota.json", Calendar())
    assert used_up(counts, 16_000) == 16_000
    assert len(written) == SHARE
    counts.close()
    assert len(written) == SHARE  # nothing was left over


def test_a_crash_loses_what_was_reserved_and_an_end_in_order_nothing(tmp_path: Path) -> None:
    calendar, path, most = Calendar(), tmp_path / "quota.json", 16_000
    counts = Allowance(path, calendar)
    assert fits(counts, "ann", 1, most)
    crashed = Allowance(path, calendar)
    assert used_up(crashed, most) == most - 1 - most // SHARE
    with counts:
        pass
    assert used_up(Allowance(path, calendar), most) == most - 1


def test_what_was_not_computed_is_given_back_once_on_its_day(tmp_path: Path) -> None:
    calendar = Calendar()
    counts = Allowance(tmp_path / "quota.json", calendar)
    taken = counts.take("ann", "risk", 6, 10)
    counts.refund(taken)
    counts.refund(taken)
    late = counts.take("ann", "risk", 10, 10)
    assert used_up(counts, 10) == 0
    calendar.day += timedelta(days=1)
    assert fits(counts, "ann", 7, 10)
    counts.refund(late)
    assert used_up(counts, 10) == 3


def test_rows_that_cannot_be_counted_are_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Allowance(tmp_path / "quota.json")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(allowance, "write_atomic", full)
    with pytest.raises(QueryRefusedError, match="No space left") as caught:
        counts.take("ann", "risk", 1, 10)
    assert caught.value.code == "unavailable"
    monkeypatch.setattr(allowance, "write_atomic", write_atomic)
    assert used_up(counts, 10) == 10


def test_threads_do_not_take_a_row_twice(tmp_path: Path) -> None:
    counts, given_out = Allowance(tmp_path / "quota.json"), list[int]()
    threads = [
        Thread(target=lambda: given_out.append(used_up(counts, 400)), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(given_out) == 400


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(1, 40),
            st.sampled_from(["crash", "end", "refund", "tomorrow", "yesterday"]),
        ),
        max_size=40,
    )
)
def test_no_day_gives_more_than_is_allowed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str]
) -> None:
    calendar, path, most = Calendar(), tmp_path_factory.mktemp("counts") / "quota.json", 100
    counts, given_out, last = Allowance(path, calendar), dict[date, int](), None
    latest = date.min
    for step in steps:
        if step == "crash":
            counts = Allowance(path, calendar)
        elif step == "end":
            counts.close()
            counts = Allowance(path, calendar)
        elif step == "refund":
            if last is not None:
                given_out[last.day] -= last.rows
                counts.refund(last)
                last = None
        elif isinstance(step, str):
            calendar.day += timedelta(days=1 if step == "tomorrow" else -1)
        else:
            try:
                last = counts.take("ann", "risk", step, most)
            except QueryRefusedError:
                continue
            latest = max(latest, calendar.day)
            assert last.day == latest
            given_out[last.day] = given_out.get(last.day, 0) + step
            assert given_out[last.day] <= most


def test_a_count_that_cannot_be_read_stops_the_server(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    for content in (
        *("", "{}", "[" * 10_000, '{"day": "2026-13-01", "rows": {}}'),
        '{"day": "2026-01-01", "rows": {"a": {"b": -1}}}',
        '{"day": "2026-01-01", "rows": {}, "more": 1}',
    ):
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="remove the file"):
            Allowance(path)
    path.write_text('{"day": "2026-01-01", "rows": {}}')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        Allowance(path)


ONE, OTHER = b"1" * 16, b"2" * 16


def test_a_question_that_was_lost_counts_once(tmp_path: Path) -> None:
    calendar = Calendar()
    path = tmp_path / "counts.json"
    with Allowance(path, calendar) as counts:
        counts.take("ann", "risk", 6, 12, ONE)
        counts.lose_all()
        with pytest.raises(QueryRefusedError):
            counts.take("ann", "risk", 8, 12, ONE)  # of another length it is another question
        with pytest.raises(QueryRefusedError):
            counts.take("bob", "risk", 13, 12, ONE)
        counts.take("ann", "risk", 6, 12, ONE)
        counts.take("ann", "risk", 6, 12, ONE)  # twice at once: both count
        counts.answered("ann", ONE)
        counts.lose_all()
        for name in (ONE, OTHER):
            with pytest.raises(QueryRefusedError):
                counts.take("ann", "risk", 6, 12, name)


def test_a_lost_question_is_free_for_its_own_model_on_its_own_day_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calendar = Calendar()
    counts = Allowance(tmp_path / "counts.json", calendar)
    counts.take("ann", "risk", 6, 6, ONE)
    counts.lose("ann", ONE)
    counts.take("ann", "dose", 6, 6, ONE)  # another question, which counts
    assert not fits(counts, "ann", 1, 6, "dose")
    calendar.day += timedelta(days=1)
    counts.take("ann", "risk", 6, 6, ONE)
    assert not fits(counts, "ann", 1, 6)
    monkeypatch.setattr(allowance, "MOST_UNANSWERED", 1)
    for name in (ONE, OTHER):
        counts.take("bob", "risk", 3, 6, name)
        counts.lose("bob", name)
    counts.take("bob", "risk", 3, 6, OTHER)
    with pytest.raises(QueryRefusedError):
        counts.take("bob", "risk", 3, 6, ONE)  # forgotten


def test_the_names_of_lost_questions_outlast_an_end_in_order_and_no_crash(tmp_path: Path) -> None:
    calendar = Calendar()
    path = tmp_path / "counts.json"
    with Allowance(path, calendar) as counts:
        counts.take("ann", "risk", 6, 6, ONE)
    crashed = Allowance(path, calendar)
    assert ONE.hex() not in path.read_text()
    crashed.take("ann", "risk", 6, 6, ONE)
    with Allowance(path, calendar) as counts, pytest.raises(QueryRefusedError):
        counts.take("ann", "risk", 6, 6, ONE)
    with Allowance(path, calendar) as counts:
        counts.take("bob", "risk", 6, 6, OTHER)
    with Allowance(path, calendar) as counts:
        counts.take("bob", "risk", 6, 6, OTHER)
        counts.answered("bob", OTHER)
    with Allowance(path, calendar) as counts, pytest.raises(QueryRefusedError):
        counts.take("bob", "risk", 6, 6, OTHER)
