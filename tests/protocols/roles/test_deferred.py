"""Deferred values: the order of what follows from a value, and chains of any length."""

from collections.abc import Callable

from protocols.roles.deferred import Deferred, combine


def pending() -> Deferred[int]:
    return Deferred(lambda: None)


def test_a_chain_of_any_length_is_computed() -> None:
    """A sequence of thousands of steps; by recursion it would end with an error."""
    first, second = pending(), pending()
    value: Deferred[int] = first
    for step in range(10_000):
        if step % 2:
            value = combine(lambda one, other: one + other, value, second)
        else:
            value = value.map(lambda one: one + 1)
    found: list[int] = []
    value.then(found.append)
    first.resolve(0)
    assert not found
    second.resolve(1)
    assert found == [10_000]


def test_what_follows_comes_depth_first_in_the_order_of_requests() -> None:
    """So all evaluators open the same values in the same order."""
    first = pending()
    said: list[object] = []

    def noting(name: str) -> Callable[[int], int]:
        def note(value: int) -> int:
            said.append(name)
            return value

        return note

    for name in "ab":
        branch = first.map(noting(name))
        for leaf in "12":
            branch.map(noting(name + leaf)).then(lambda _: None)
    first.resolve(1)
    assert said == ["a", "a1", "a2", "b", "b1", "b2"]


def test_a_value_that_is_asked_for_in_a_callback_is_there() -> None:
    first = pending()
    said: list[object] = []
    late = first.map(lambda one: one + 1).map(lambda one: one + 1)
    first.then(lambda _: said.append(late.get()))
    first.then(lambda _: said.append("next"))
    first.resolve(1)
    assert said == [3, "next"]
