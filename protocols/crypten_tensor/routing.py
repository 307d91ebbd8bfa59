"""Which of CrypTen's functions a tensor has, and whether a call is recorded for autograd.

CrypTen looks every attribute of a tensor up among its autograd functions. Here the functions are
descriptors of the class instead (`offer`): one that is supported is recorded while gradients are
enabled and called directly otherwise, and one that is not raises when it is looked up.
"""

from __future__ import annotations

import inspect
from typing import Any

from protocols.crypten_tensor.importing import crypten

dispatched = crypten.CrypTensor.__getattribute__.__wrapped__
"""CrypTen's attribute lookup without its wrapper, which asks CrypTen's configuration each time
whether to compare every result with a plaintext, and takes 50 µs."""

# What CrypTen offers and what is right over masked sharing, forward and backward. Everything else
# of CrypTen's is refused: much of it is wrong in 0.4.1, or fails in the middle for want of a
# member that this type does not have, or loses gradients without a word.
_SUPPORTED = """
    __eq__ __getitem__ __ge__ __gt__ __le__ __len__ __lt__ __ne__ __rsub__ __rtruediv__ abs add
    binary_cross_entropy_with_logits cat clone cross_entropy dim div dot eq expand flatten ge ger gt
    inv_sqrt le linear lt matmul max mean min mse_loss mul ne neg nelement numel permute pow
    reciprocal relu reshape sigmoid sign size softmax square squeeze stack sub sum t tanh transpose
    unsqueeze var view where
"""
SUPPORTED = frozenset(_SUPPORTED.split())
_COMMON = crypten.common.functions
_OFFERED = {name for module in _COMMON.__all__ for name in getattr(_COMMON, module).__all__}
_REFUSED = frozenset(_OFFERED | set(crypten.gradients.FUNCTION_REGISTRY)) - SUPPORTED
_NO_GRADIENT = frozenset({"expand", "inv_sqrt"})


class _Recorded:
    """A function of CrypTen's autograd as an attribute; without recording, the method behind it."""

    def __init__(self, name: str, method: Any) -> None:
        self._name = name
        self._method = method

    def __get__(self, tensor: Any, owner: Any) -> Any:
        if tensor is None:
            return self
        if crypten.CrypTensor.AUTOGRAD_ENABLED:
            return dispatched(tensor, self._name)
        if self._method is None:
            function = crypten.gradients.FUNCTION_REGISTRY[self._name]
            return tensor._get_forward_function_no_ctx(function)
        return self._method.__get__(tensor, owner)


class _Refused:
    """A function of CrypTen's that raises when it is looked up, always or where it is recorded."""

    def __init__(self, name: str, method: Any = None) -> None:
        self._name = name
        self._method = method

    def __get__(self, tensor: Any, owner: Any) -> Any:
        if tensor is None:
            return self
        if self._method is None:
            raise NotImplementedError(
                f"{self._name}: CrypTen's version is not offered over masked sharing"
            )
        if tensor.requires_grad and crypten.CrypTensor.AUTOGRAD_ENABLED:
            raise NotImplementedError(f"{self._name}: no gradient is implemented; use detach()")
        return self._method.__get__(tensor, owner)


def route(kind: type, name: str) -> None:
    """Record calls of the method `name` of a tensor type, which may have none of its own."""
    method = inspect.getattr_static(kind, name, None)
    if isinstance(method, _Refused):
        method = None
    if not isinstance(method, _Recorded):
        setattr(kind, name, _Recorded(name, method))


def offer(kind: type) -> None:
    """Give a tensor type the functions that are supported, and refusals in place of the others."""
    for name in SUPPORTED & set(crypten.gradients.FUNCTION_REGISTRY):
        if not name.startswith("__"):  # what Python calls itself goes past every dispatch
            route(kind, name)
    for name in _REFUSED:
        setattr(kind, name, _Refused(name))
    for name in _NO_GRADIENT:
        setattr(kind, name, _Refused(name, inspect.getattr_static(kind, name)))
