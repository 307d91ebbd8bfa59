"""The graph that gradients go back through: what PyTorch refuses is refused, not left out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from protocols.crypten_tensor.importing import crypten
from protocols.roles.role import Role
from tests.protocols.crypten_tensor.test_tensor import (
    X,
    Y,
    decoded,
    forward,
    gradients,
    handed_out,
    plain,
    started,
)
from tests.support.lockstep import run_lockstep


def alone(body: Callable[[], Any]) -> np.ndarray:
    """What a tensor that `body` returns stands for."""

    def program(role: Role) -> Any:
        started(role)
        return handed_out(body())

    return decoded(run_lockstep(program, 2))


def leaf(values: Any = X, src: int = 0) -> Any:
    return crypten.cryptensor(plain(values), src=src, requires_grad=True)


def twice() -> None:
    loss = leaf().square().sum()
    loss.backward()
    loss.backward()


def shared_part_of_two_losses() -> None:
    hidden = leaf() * 2
    hidden.sum().backward()
    hidden.square().sum().backward()


def without_recording() -> None:
    x = leaf()
    with crypten.no_grad():
        loss = x.sum()
    loss.backward()


def in_evaluation() -> None:
    model = crypten.nn.Linear(4, 1)
    model.encrypt()
    model.eval()
    model(crypten.cryptensor(plain([X]), src=0)).sum().backward()


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "twice": (twice, RuntimeError, "already used"),
    "shared part": (shared_part_of_two_losses, RuntimeError, "already used"),
    "without recording": (without_recording, RuntimeError, "requires a gradient"),
    "in evaluation": (in_evaluation, RuntimeError, "requires a gradient"),
    "of many numbers": (lambda: (leaf() * 2).backward(), RuntimeError, "of a number only"),
    "a target's": (lambda: leaf().mse_loss(leaf(Y)), NotImplementedError, "no gradient for its"),
    "data": (lambda: leaf().data.sub_(1), TypeError, "no values here"),
    "in place, larger": (
        lambda: leaf().detach().add_(plain([X, Y])),
        ValueError,
        "does not fit a tensor of shape",
    ),
    "complex": (lambda: crypten.cryptensor(torch.ones(2) * 1j, src=0), TypeError, "complex"),
    "PyTorch's": (lambda: torch.exp(leaf()), NotImplementedError, "exp: PyTorch's function"),
    "array": (lambda: np.asarray(leaf()), TypeError, "no array"),
    "variance of one": (lambda: leaf([[1.0]]).var(0), ValueError, "unbiased=False"),
    "rows of classes": (
        lambda: crypten.nn.CrossEntropyLoss()(leaf(np.ones((2, 3, 2))), leaf(np.ones((2, 3, 2)))),
        ValueError,
        "one-hot rows",
    ),
    "a loss compared": (
        lambda: leaf().mse_loss(leaf(Y).detach()) < 1,
        NotImplementedError,
        "not computed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, error, words = REFUSED[name]

    def program(role: Role) -> None:
        started(role)
        body()

    with pytest.raises(error, match=words):
        run_lockstep(program, 2)


def test_gradients_of_two_passes_add_up() -> None:
    def body() -> Any:
        x = leaf()
        (x * 2).sum().backward()
        (x * 3).sum().backward()
        return x.grad

    np.testing.assert_allclose(alone(body), [5] * 4, atol=2**-18)


def test_a_failed_pass_does_not_change_the_next() -> None:
    """CrypTen counts the parts of a gradient across passes, and then waits for ones of the past."""

    def body() -> Any:
        x = leaf()
        hidden, used = x * 2, x * 5
        used.sum().backward()
        with pytest.raises(RuntimeError, match="already used"):
            (hidden.sum() + used.sum()).backward()
        x.grad = None
        hidden.sum().backward()
        return x.grad

    np.testing.assert_allclose(alone(body), [2] * 4, atol=2**-18)


def test_a_long_chain_needs_no_stack() -> None:
    def body() -> Any:
        x = leaf([1.0])
        y = x
        for _ in range(1500):
            y = y + 1
        y.sum().backward()
        return x.grad

    np.testing.assert_allclose(alone(body), [1])


def test_an_uncomputed_loss_stays_one() -> None:
    """A sum over batches, in place, and beside others."""

    def program(role: Role) -> None:
        started(role)
        loss = leaf().mse_loss(crypten.cryptensor(plain(Y), src=1))
        total = crypten.cryptensor(0.0)
        total += loss.detach()
        other = crypten.cryptensor(plain([2.0]), src=1)
        for each in (total, crypten.stack([other, loss.reshape(1)]), other * loss):
            with pytest.raises(NotImplementedError, match="is not computed"):
                each.get_plain_text()

    run_lockstep(program, 2)


@pytest.mark.parametrize("rows", [1, 3])
def test_cross_entropy_of_one_row(rows: int) -> None:
    """CrypTen drops an axis of length 1, and then divides by the number of classes."""
    logits = np.arange(4.0 * rows).reshape(rows, 4) / 5
    targets = plain(np.eye(4)[np.arange(rows)])
    got = gradients(
        lambda a: crypten.nn.CrossEntropyLoss()(a, crypten.cryptensor(targets, src=1)), logits
    )[0]
    expected = plain(logits).requires_grad_()
    torch.nn.functional.cross_entropy(expected, targets).backward()
    assert got is not None and expected.grad is not None
    np.testing.assert_allclose(got, expected.grad.numpy(), atol=2**-11)


@pytest.mark.parametrize("shape", [(9,), (12,), (1, 9), (1, 16), (3, 10)])
def test_the_maximum_of_nine_and_more(shape: tuple[int, ...]) -> None:
    """A single row of nine or more had its bits in an order that the kernel does not take."""
    values = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 8
    np.testing.assert_allclose(forward(lambda a: a.max(-1), values), values.max(-1), atol=2**-18)
