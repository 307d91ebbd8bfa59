"""CrypTen over masked sharing: forward, gradients and training as PyTorch has them, or an error."""

from collections.abc import Callable
from fractions import Fraction
from operator import methodcaller
from typing import Any

import numpy as np
import pytest
import torch

from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor import tensor as crypten_backend
from protocols.crypten_tensor.importing import crypten
from protocols.crypten_tensor.routing import SUPPORTED
from protocols.crypten_tensor.tensor import MaskedTensor, attach, detach
from protocols.errors import RangeError, RevealError
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of

F = 20
UNIT = 2.0**-F
X = [0.5, -1.5, 2.0, 3.0]
Y = [1.5, 2.0, 4.0, 1.0]


def plain(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def started(role: Role) -> None:
    dispatch.install()
    attach(role, F)


def handed_out(tensor: MaskedTensor) -> Any:
    """A tensor's shares and what its words stand for."""
    masked = tensor.masked()
    return shares_of(masked), float(tensor.factor), tensor.bits


def decoded(results: list[Any]) -> np.ndarray:
    words = combine_masked([shares for shares, _, _ in results])
    _, factor, bits = results[0]
    return np.asarray(words / 2.0**bits * factor)


def forward(function: Callable[..., Any], *values: Any, evaluators: int = 2) -> np.ndarray:
    def program(role: Role) -> Any:
        started(role)
        tensors = [crypten.cryptensor(plain(v), src=i % 2) for i, v in enumerate(values)]
        result = function(*tensors)
        return handed_out(result[0] if isinstance(result, tuple) else result)

    return decoded(run_lockstep(program, evaluators))


def weighted_sum(result: Any) -> Any:
    """A scalar of any result, with a different weight for every element."""
    result = result[0] if isinstance(result, tuple) else result
    if result.dim() == 0:
        return result
    count = result.nelement()
    weights = torch.arange(1, count + 1, dtype=torch.float64).reshape(result.shape)
    return (result * weights).sum()


def gradients(function: Callable[..., Any], *values: Any) -> list[np.ndarray | None]:
    def program(role: Role) -> Any:
        started(role)
        tensors = [crypten.cryptensor(plain(v), src=i % 2) for i, v in enumerate(values)]
        for tensor in tensors:
            tensor.requires_grad = True
        weighted_sum(function(*tensors)).backward()
        return [None if t.grad is None else handed_out(t.grad) for t in tensors]

    results = run_lockstep(program, 2)
    return [
        None if parts[0] is None else decoded(list(parts)) for parts in zip(*results, strict=True)
    ]


def expected_gradients(function: Callable[..., Any], *values: Any) -> list[np.ndarray]:
    tensors = [plain(v).requires_grad_() for v in values]
    weighted_sum(function(*tensors)).backward()
    return [torch.zeros_like(t).numpy() if t.grad is None else t.grad.numpy() for t in tensors]


Case = tuple[Callable[..., Any], tuple[Any, ...]]

DIFFERENTIABLE: dict[str, Case] = {
    "add": (lambda a, b: a + b, (X, Y)),
    "sub": (lambda a, b: a - b, (X, Y)),
    "rsub": (lambda a: 1 - a, (X,)),
    "add number": (lambda a: a + 2.5, (X,)),
    "mul": (lambda a, b: a * b, (X, Y)),
    "mul number": (lambda a: a * 0.3, (X,)),
    "mul tensor": (lambda a: a * plain([1, 2, 3, 0.5]), (X,)),
    "mul broadcast": (lambda a, b: a.reshape(4, 1) * b, (X, Y)),
    "add broadcast": (lambda a, b: a.reshape(4, 1) + b, (X, Y)),
    "div": (lambda a, b: a / b, (X, Y)),
    "div number": (lambda a: a / 3, (X,)),
    "neg": (lambda a: -a, (X,)),
    "square": (lambda a: a.square(), (X,)),
    "reuse": (lambda a: a * 2 + a.square() + a * a, (X,)),
    "matmul": (lambda a, b: a.reshape(2, 2).matmul(b.reshape(2, 2)), (X, Y)),
    "dot": (lambda a, b: a.dot(b), (X, Y)),
    "sum": (lambda a: a.sum(), (X,)),
    "sum dim": (lambda a: a.reshape(2, 2).sum(-1), (X,)),
    "sum keepdim": (lambda a: a.reshape(2, 2).sum(0, keepdim=True), (X,)),
    "mean": (lambda a: a.mean(), (X,)),
    "mean dim": (lambda a: a.reshape(2, 2).mean(1), (X,)),
    "mean dims": (lambda a: a.reshape(2, 2).mean([0, 1]), (X,)),
    "relu": (lambda a: a.relu(), (X,)),
    "relu of a negative multiple": (lambda a: (a * -0.5).relu(), (X,)),
    "sigmoid": (lambda a: a.sigmoid(), (X,)),
    "tanh": (lambda a: a.tanh(), (X,)),
    "softmax": (lambda a: a.reshape(2, 2).softmax(1), (X,)),
    "max": (lambda a: a.max(), (X,)),
    "max dim": (lambda a: a.reshape(2, 2).max(1), (X,)),
    "abs": (lambda a: a.abs(), (X,)),
    "pow 3": (lambda a: a.pow(3), (Y,)),
    "pow 5": (lambda a: a.pow(5), (Y,)),
    "reciprocal": (lambda a: a.reciprocal(), (X,)),
    "var": (lambda a: a.var(), (X,)),
    "var dim": (lambda a: a.reshape(2, 2).var(0), (X,)),
    "reshape": (lambda a: a.reshape(2, 2), (X,)),
    "flatten": (lambda a: a.reshape(2, 2).flatten(), (X,)),
    "transpose": (lambda a: a.reshape(2, 2).transpose(0, 1), (X,)),
    "permute": (lambda a: a.reshape(1, 2, 2).permute((1, 2, 0)), (X,)),
    "squeeze": (lambda a: a.reshape(1, 4).squeeze(), (X,)),
    "unsqueeze": (lambda a: a.unsqueeze(0), (X,)),
    "var, biased": (lambda a: a.var(unbiased=False), (X,)),
    "var dim, biased": (lambda a: a.reshape(2, 2).var(1, unbiased=False, keepdim=True), (X,)),
    "power": (lambda a: a**3, (Y,)),
    "number over": (lambda a: 2 / a, (Y,)),
    "cat": (lambda a, b: torch.cat([a * a, b.reshape(4) * 3]), (X, Y)),
    "cat along": (lambda a, b: torch.cat([a.reshape(2, 2), b.reshape(2, 2)], dim=-1), (X, Y)),
    "stack": (lambda a, b: torch.stack([a * 2, b], dim=1), (X, Y)),
    "index": (lambda a: a[1:3], (X,)),
    "index tensor": (lambda a: a[torch.tensor([3, 3, 0])], (X,)),
    "index twice": (lambda a: a.reshape(2, 2)[:, torch.tensor([1, 1])] * a[0], (X,)),
    "permute back": (lambda a: a.reshape(1, 2, 2).permute(-1, 0, 1), (X,)),
}

FORWARD: dict[str, Case] = {
    **DIFFERENTIABLE,
    "pow 7": (lambda a: a.pow(7), (Y,)),
    "pow 0": (lambda a: a.pow(0), (Y,)),
    "pow -2": (lambda a: a.pow(-2), (Y,)),
    "product, factor and sum": (lambda a, b: (a * b * 10).mul(0.013) + a * b, (X, [30.0] * 4)),
    "product, small factor and sum": (lambda a, b: (a * b).mul(1e-6) + b, (X, [900.0] * 4)),
    "max of a negative multiple": (lambda a: (a * -2).max(), (X,)),
    "min": (lambda a: a.min(), (X,)),
    "sign": (lambda a: (a * -3).sign(), (X,)),
    "expand": (lambda a: a.expand(3, 4), (X,)),
    "ger": (lambda a, b: a.ger(b), (X, Y)),
    "plain times": (lambda a: plain(Y) * a, (X,)),
    "plain plus": (lambda a: plain(Y) + a, (X,)),
    "plain minus": (lambda a: plain(Y) - a, (X,)),
    "plain over": (lambda a: plain(X) / a, (Y,)),
    "numpy array times": (
        lambda a: (np.array(Y) if isinstance(a, MaskedTensor) else plain(Y)) * a,
        (X,),
    ),
    "cat of a comparison": (
        lambda a: torch.cat([a.gt(0) if isinstance(a, MaskedTensor) else a.gt(0).double(), a]),
        (X,),
    ),
    "sigmoid of a comparison": (
        lambda a: (a._ltz() if isinstance(a, MaskedTensor) else (a < 0).double()).sigmoid(),
        (X,),
    ),
    "times zero, compared": (lambda a: (a * 0).sign().abs(), (X,)),
}


def plain_case(name: str, function: Callable[..., Any], values: tuple[Any, ...]) -> np.ndarray:
    if name == "times zero, compared":
        return np.ones(4)  # CrypTen counts 0 as positive
    result = function(*map(plain, values))
    result = result[0] if isinstance(result, tuple) else result
    array: np.ndarray = result.numpy()
    return array


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str) -> None:
    function, values = FORWARD[name]
    expected = plain_case(name, function, values)
    got = forward(function, *values)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2**-11 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name: str) -> None:
    function, values = DIFFERENTIABLE[name]
    for got, expected in zip(
        gradients(function, *values), expected_gradients(function, *values), strict=True
    ):
        assert got is not None and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=2**-9 * max(1, np.abs(expected).max()))


def test_names_that_are_not_known_to_be_right_raise() -> None:
    """Everything in CrypTen's registry and function lists is either offered or refused."""
    common = crypten.common.functions
    names = {name for module in common.__all__ for name in getattr(common, module).__all__}
    registry = crypten.gradients.FUNCTION_REGISTRY
    names |= set(registry)
    ours = {name for name, function in registry.items() if "protocols" in function.__module__}

    def program(role: Role) -> None:
        started(role)
        x = MaskedTensor(plain(X), src=0)
        for name in sorted(names - SUPPORTED - ours):
            with pytest.raises(NotImplementedError, match=name.strip("_")):
                getattr(x, name)

    run_lockstep(program, 2)


@pytest.mark.parametrize("name", ["erf", "log", "sqrt", "exp", "cos", "norm", "log_softmax"])
def test_functions_that_crypten_gets_wrong(name: str) -> None:
    if name in SUPPORTED:
        pytest.skip("offered in its own version")
    for spelled in (name, name + "_"):
        with pytest.raises((NotImplementedError, AttributeError)):
            forward(methodcaller(spelled), Y)


REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
    "plaintext": (lambda a: a.get_plain_text(), RevealError),
    "random": (lambda a: MaskedTensor.rand(2), RangeError),
    "fractional power": (lambda a: a.pow(0.5), TypeError),
    "truth": (lambda a: bool(a), RuntimeError),
    "sum that does not fit": (lambda a: a.mul(2.0**-43).add(1), RangeError),
    "infinite factor": (lambda a: a * float("inf"), OverflowError),
    "no number": (lambda a: a * float("nan"), ValueError),
    "public infinity": (lambda a: a + plain([np.inf, 0, 0, 0]), RangeError),
    "nobody": (lambda a: MaskedTensor(plain(X), src=7), ValueError),
    "no shape": (lambda a: MaskedTensor(None, src=0), ValueError),
    "public nothing": (lambda a: MaskedTensor(None), ValueError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, error = REFUSED[name]
    with pytest.raises(error):
        forward(function, X)


def test_gradients_are_not_lost_silently() -> None:
    for function in (lambda a: a[1:3], lambda a: a.expand(3, 4), lambda a: a.inv_sqrt()):
        try:
            got = gradients(function, X)
        except NotImplementedError:
            continue
        assert got[0] is not None


ONE_HOT = [[0.0, 1.0], [1.0, 0.0]]
LOSSES: dict[str, tuple[Callable[[Any], Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "cross entropy": (
        lambda a: crypten.nn.CrossEntropyLoss(skip_forward=True)(
            a.reshape(2, 2), crypten.cryptensor(plain(ONE_HOT), src=0)
        ),
        lambda a: torch.nn.functional.cross_entropy(a.reshape(2, 2), plain(ONE_HOT)),
    ),
    "binary cross entropy": (
        lambda a: crypten.nn.BCEWithLogitsLoss(skip_forward=True)(
            a, crypten.cryptensor(plain([0, 1, 1, 0]), src=1)
        ),
        lambda a: torch.nn.functional.binary_cross_entropy_with_logits(a, plain([0, 1, 1, 0])),
    ),
    "squares": (
        lambda a: crypten.nn.MSELoss()(a, crypten.cryptensor(plain(Y), src=1)),
        lambda a: torch.nn.functional.mse_loss(a, plain(Y)),
    ),
    "squares, directly": (
        lambda a: a.mse_loss(crypten.cryptensor(plain(Y), src=1)),
        lambda a: torch.nn.functional.mse_loss(a, plain(Y)),
    ),
    "absolute": (
        lambda a: crypten.nn.L1Loss()(a, crypten.cryptensor(plain(Y), src=1)),
        lambda a: torch.nn.functional.l1_loss(a, plain(Y)),
    ),
}


@pytest.mark.parametrize("scaled", ["once", "half", "twice"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, scaled: str) -> None:
    ours, theirs = LOSSES[name]

    def scale(loss: Any) -> Any:
        return {"once": lambda: loss, "half": lambda: loss * 0.5, "twice": lambda: loss + loss}[
            scaled
        ]()

    got = gradients(lambda a: scale(ours(a)), X)[0]
    expected = expected_gradients(lambda a: scale(theirs(a)), X)[0]
    assert got is not None
    np.testing.assert_allclose(got, expected, atol=2**-12)


@pytest.mark.parametrize("name", ["cross entropy", "binary cross entropy", "squares, directly"])
def test_a_loss_without_a_value_cannot_be_opened(name: str) -> None:
    """Nor what is computed from it: the number would be wrong."""
    ours, _ = LOSSES[name]

    def program(role: Role) -> None:
        started(role)
        x = MaskedTensor(plain(X), src=0, requires_grad=True)
        loss = ours(x)
        other = crypten.cryptensor(plain([2.0]), src=1).sum()
        for each in (loss, loss * 0.5, loss + loss, other + loss, other * loss, loss.mean(), -loss):
            with pytest.raises(NotImplementedError, match="the value of this loss is not computed"):
                each.get_plain_text()

    run_lockstep(program, 2)


def test_equality_is_computed() -> None:
    """Python takes a refusal in `==` for unlike objects, and would say False."""
    left, right = [1.0, -2.0, 0.0, 3.5], [1.0, 2.0, 0.0, 3.25]

    def both(function: Callable[[Any, Any], Any]) -> Any:
        return forward(lambda a: function(a, crypten.cryptensor(plain(right), src=1)), left)

    np.testing.assert_array_equal(both(lambda a, b: a == b), [1, 0, 1, 0])
    np.testing.assert_array_equal(both(lambda a, b: a != b), [0, 1, 0, 1])


def stock_model(seed: int) -> tuple[Any, torch.nn.Sequential]:
    """The same network of CrypTen's stock modules and of PyTorch's."""
    torch.manual_seed(seed)
    reference = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    ).double()
    layers = []
    for layer in reference:
        if isinstance(layer, torch.nn.Linear):
            copied = crypten.nn.Linear(layer.in_features, layer.out_features)
            copied.weight.data = layer.weight.detach().clone()
            copied.bias.data = layer.bias.detach().clone()
            layers.append(copied)
        else:
            layers.append(crypten.nn.ReLU())
    return crypten.nn.Sequential(*layers), reference


@pytest.mark.parametrize("evaluators", [2, 3])
def test_twenty_steps_of_stock_modules(evaluators: int) -> None:
    """`crypten.nn` modules, CrypTen's autograd and a plain loop, against PyTorch.

    Each weight is rounded a few times a step by at most a unit of 2^-20; gradients carry the
    softmax's error of 2^-12: 20 steps at rate 0.1 leave less than 2^-9.
    """
    rng = np.random.default_rng(0)
    rows = plain(rng.uniform(-2, 2, (8, 4)))
    labels = plain(np.eye(3)[rng.integers(0, 3, 8)])
    rate = Fraction(1, 10)

    def program(role: Role) -> Any:
        started(role)
        with torch.random.fork_rng():
            model, _ = stock_model(3)
        model.encrypt(src=0)
        x = crypten.cryptensor(rows, src=0)
        y = crypten.cryptensor(labels, src=1)
        criterion = crypten.nn.CrossEntropyLoss(skip_forward=True)
        for step in range(20):
            role.begin_step(step + 1)
            model.zero_grad()
            criterion(model(x), y).backward()
            with crypten.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.sub(parameter.grad.mul(rate)))
                    parameter.masked()
            role.finish()
        return [handed_out(parameter) for parameter in model.parameters()]

    _, reference = stock_model(3)
    optimizer = torch.optim.SGD(reference.parameters(), lr=float(rate))
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(reference(rows), labels).backward()
        optimizer.step()
    results = run_lockstep(program, evaluators)
    for parts, expected in zip(zip(*results, strict=True), reference.parameters(), strict=True):
        np.testing.assert_allclose(decoded(list(parts)), expected.detach().numpy(), atol=2**-9)


def test_a_role_has_to_be_attached() -> None:
    detach()
    with pytest.raises(RuntimeError, match="attach"):
        MaskedTensor(1.0)


def test_default_type_and_repr() -> None:
    def program(role: Role) -> str:
        started(role)
        x = crypten.cryptensor(plain(X), src=0)
        assert isinstance(x, MaskedTensor) and crypten.is_encrypted_tensor(x)
        assert x.size() == (4,) and x.dim() == 1 and x.nelement() == 4
        return repr(x)

    assert set(run_lockstep(program, 2)) == {"MaskedTensor(shape=(4,))"}


def test_fraction_bits_are_checked() -> None:
    def program(role: Role) -> None:
        with pytest.raises(RangeError):
            attach(role, 40)

    run_lockstep(program, 2)
    assert crypten_backend.MAX_BITS < 62
