"""Values that an opening will provide: the dataflow behind deferred openings.

An evaluator does not wait when it requests an opening. It gets a `Deferred`, says what to compute
from it (`map`, `combine`) and which opening follows (`bind`), and continues. Values that nobody
requests are not computed; an opening always requests its value, at all evaluators in the same
order. When a value is needed, `get` sends everything that is pending in one exchange, computes what
that makes possible, and repeats this until the value is available. The number of rounds is
therefore the depth of the program's dataflow, however its lines are ordered.

The dealer runs the same lines and never sees an opened value: its deferred values are `Never`.

What follows from a value is computed depth first, by a loop and not by recursion: a sequence of
thousands of steps is a chain of as many values.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
U = TypeVar("U")

Settle = Callable[[], None]


class _Running(threading.local):
    """The callbacks that wait for their turn in this thread, with their values; None: no loop runs
    them now."""

    queue: deque[tuple[Callable[[Any], None], Any]] | None = None


_running = _Running()


class Deferred(Generic[T]):
    """A value that is available, or that a later exchange of the evaluators will provide."""

    __slots__ = ("_callbacks", "_value", "ready", "settle")

    def __init__(self, settle: Settle) -> None:
        self.settle = settle
        self._callbacks: list[Callable[[T], None]] = []
        self._value: Any = None
        self.ready = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(ready={self.ready})"

    def resolve(self, value: T) -> None:
        """Set the value, once, and run the waiting callbacks in the order of their requests."""
        if self.ready:
            raise AssertionError("a deferred value is set once")
        self._value = value
        self.ready = True
        callbacks, self._callbacks = self._callbacks, []
        if not callbacks:
            return
        queue = _running.queue
        if queue is not None:  # they come before whatever waits already
            queue.extendleft([(callback, value) for callback in reversed(callbacks)])
            return
        queue = _running.queue = deque([(callback, value) for callback in callbacks])
        try:
            while queue:
                callback, found = queue.popleft()
                callback(found)
        finally:
            _running.queue = None

    def then(self, callback: Callable[[T], None]) -> None:
        """Call `callback` with the value as soon as it is available, possibly at once."""
        if self.ready:
            callback(self._value)
        else:
            self._callbacks.append(callback)

    def get(self) -> T:
        """The value; exchanges pending openings until it is there."""
        if not self.ready:
            # Whoever asks for a value in a callback gets it there, before the loop goes on.
            outer, _running.queue = _running.queue, None
            try:
                self._request()
                while not self.ready:
                    self.settle()
            finally:
                _running.queue = outer
        value: T = self._value
        return value

    def _request(self) -> None:
        """Have the value computed, if that is not under way anyway."""

    def map(self, function: Callable[[T], U]) -> Deferred[U]:
        """`function` of the value, computed once, when it is requested and the value is
        available."""
        return _Lazy(function, self)

    def bind(self, function: Callable[[T], Deferred[U]]) -> Deferred[U]:
        """The value of the deferred that `function` returns: an opening that follows."""
        result: Deferred[U] = Deferred(self.settle)
        self.then(lambda value: function(value).then(result.resolve))
        return result


class _Lazy(Deferred[T]):
    """A value computed from one or two others, only if it is requested.

    Its sources are freed as soon as they are not needed any more: a parameter depends on that of
    the previous step, for thousands of steps. A step makes hundreds of these, hence few calls
    rather than short functions.
    """

    __slots__ = ("_function", "_other", "_source")

    def __init__(
        self, function: Callable[..., T], source: Deferred[Any], other: Deferred[Any] | None = None
    ) -> None:
        self.settle = source.settle
        self.ready = False
        self._value = None
        self._callbacks = []
        self._function: Callable[..., T] | None = function
        self._source: Deferred[Any] | None = source
        self._other = other

    def then(self, callback: Callable[[T], None]) -> None:
        node: Deferred[Any] = self
        while type(node) is _Lazy and not node.ready:
            node._callbacks.append(callback)
            source, node._source = node._source, None
            if source is None:  # it has been requested before
                return
            callback, node = node._found, source
        if node.ready:
            callback(node._value)
        else:
            node.then(callback)

    def _request(self) -> None:
        self.then(_ignore)

    def _found(self, value: Any) -> None:
        """A source is available: compute the value, or wait for the other source."""
        function, self._function = self._function, None
        other, self._other = self._other, None
        assert function is not None
        if other is None:
            self.resolve(function(value))
        elif other.ready:
            self.resolve(function(value, other._value))
        else:
            other.then(lambda second: self.resolve(function(value, second)))


class Never(Deferred[Any]):
    """A dealer's placeholder for an opened value: nothing can be computed from it."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_no_exchange)

    def then(self, callback: Callable[[Any], None]) -> None:
        """Do nothing."""

    def get(self) -> Any:
        raise AssertionError("a dealer asked for an opened value")

    def map(self, function: Callable[[Any], Any]) -> Never:
        return self

    def bind(self, function: Callable[[Any], Any]) -> Never:
        return self


def combine(function: Callable[[A, B], U], first: Deferred[A], second: Deferred[B]) -> Deferred[U]:
    """`function(first, second)`, as soon as both are there."""
    if isinstance(first, Never):
        return first
    return _Lazy(function, first, second)


def _ignore(value: object) -> None:
    """Ask for a value without doing anything with it."""


def _no_exchange() -> None:
    raise AssertionError("a dealer has no openings to exchange")
