"""A desk answers within its budget, and nothing but questions."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.doctor.desk import (
    BUSY_BUDGET_BYTES,
    MAX_PAYLOAD_BYTES,
    MESSAGE_COST_BYTES,
    REFILL_S,
    Desk,
    question,
    read_answer,
)
from parties.errors import ControlError


class Part:
    """A received part."""

    def __init__(self, data: Any) -> None:
        self.bytes = bytes(data)

    def __len__(self) -> int:
        return len(self.bytes)


def asked(desk: Desk, *parts: Any, name: str = "ann") -> Sequence[Any] | None:
    return desk.answer(name, [Part(part) for part in parts])  # type: ignore[misc]


def told(answer: Sequence[Any] | None) -> tuple[Any, int]:
    assert answer is not None
    return read_answer([Part(part) for part in answer], "desk")  # type: ignore[misc]


def test_an_answer_repeats_the_number_and_has_the_size() -> None:
    desk = Desk(7, clock=lambda: 12.5)
    found, size = told(asked(desk, *question(41, 1000)))
    assert (found.n, found.at, found.version, found.spent, size) == (41, 12.5, 7, False, 1000)
    assert desk.names == {"ann": 1}


def test_each_name_has_a_budget_that_refills() -> None:
    now = [0.0]
    desk = Desk(7, budget_bytes=10 * (MESSAGE_COST_BYTES + 1000), ticks=lambda: now[0])
    sizes = [told(asked(desk, *question(0, 1000)))[1] for _ in range(12)]
    assert sizes == [1000] * 10 + [0, 0]
    assert told(asked(desk, *question(0, 0, bytes(1000))))[0].spent
    assert not told(asked(desk, *question(0, 1000), name="bob"))[0].spent
    now[0] = REFILL_S / 10
    assert [told(asked(desk, *question(0, 1000)))[1] for _ in range(2)] == [1000, 0]
    now[0] = 100 * REFILL_S
    sizes = [told(asked(desk, *question(0, 1000)))[1] for _ in range(12)]
    assert sizes.count(1000) == 10


def test_uploads_are_paid_for_too() -> None:
    desk = Desk(7, budget_bytes=10 * (MESSAGE_COST_BYTES + 1000), ticks=lambda: 0.0)
    spent = [told(asked(desk, *question(0, 0, bytes(1000))))[0].spent for _ in range(11)]
    assert spent == [False] * 10 + [True]


def test_a_run_under_way_lowers_the_budget() -> None:
    busy = [False]
    desk = Desk(7, busy=lambda: busy[0], ticks=lambda: 0.0)
    assert not told(asked(desk, *question(0, MAX_PAYLOAD_BYTES)))[0].busy
    busy[0] = True
    count = 0
    while not told(asked(desk, *question(0)))[0].spent:
        count += 1
    assert count == BUSY_BUDGET_BYTES // MESSAGE_COST_BYTES


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_what_is_not_a_question_gets_no_answer(parts: list[bytes]) -> None:
    answer = asked(Desk(7), *parts)
    if answer is not None:
        found, size = told(answer)
        assert 1 <= len(parts) <= 2 and size <= MAX_PAYLOAD_BYTES and found.version == 7


@pytest.mark.parametrize("want", [-1, MAX_PAYLOAD_BYTES + 1, 1 << 62])
def test_nobody_asks_for_more_than_the_limit(want: int) -> None:
    assert asked(Desk(7), msgspec.msgpack.encode({"n": 0, "want": want})) is None


@given(st.lists(st.binary(max_size=64), max_size=3))
def test_a_malformed_answer_is_a_control_error(parts: list[bytes]) -> None:
    try:
        found, _ = read_answer([Part(part) for part in parts], "desk")  # type: ignore[misc]
    except ControlError as error:
        assert "desk" in str(error)
    else:
        assert 0 <= found.version < 1 << 32
