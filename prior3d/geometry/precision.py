"""Precision of geometry: float32, or float64 for float64 inputs, regardless of autocast and TF32 outside.

`exact` and `working_dtype` choose the type; `full_precision` and `in_full_precision` keep matrix products in it.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the common floating type of tensors, at least float32: half precision is widened, float64 stays.

    Args:
        tensors: tensors of any shape and type; integers count as float32, None does not count.

    >>> working_dtype(torch.zeros(1, dtype=torch.bfloat16))
    torch.float32
    """
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def exact(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast all tensors to their `working_dtype`; None stays None.

    Args:
        tensors: tensors of any shape and type.

    >>> [tensor.dtype for tensor in exact(torch.zeros(1, dtype=torch.bfloat16))]
    [torch.float32]
    """
    dtype = working_dtype(*tensors)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in `full_precision`, with half-precision tensor arguments widened to float32.

    Float64 arguments stay float64, as gradcheck needs.

    Args:
        function: function whose tensor arguments are passed directly (not inside containers).

    Returns:
        The guarded function.

    >>> @in_full_precision
    ... def product(a, b):
    ...     return a @ b
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     product(torch.eye(2), torch.eye(2)).dtype
    torch.float32
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = [value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
        with full_precision(device):
            wide_args = [_widened(value) for value in args]
            return function(*wide_args, **{name: _widened(value) for name, value in kwargs.items()})

    return guarded


def _widened(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off autocast and reduced-precision (TF32, bf16) float32 matrix products within the block.

    This covers only operations that run inside the block. Their backward pass needs a block of its own.

    Args:
        device: device of the tensors in the block.

    >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
    ...     (torch.eye(2) @ torch.eye(2)).dtype
    torch.float32
    """
    with torch.autocast(device.type, enabled=False):
        put_back = _keep_all_bits()
        try:
            yield
        finally:
            put_back()


def _keep_all_bits() -> Callable[[], None]:
    """Require full float32 matrix products; calling the returned function restores the user's choice."""
    # Since torch 2.9 each backend has its own setting. Releases differ in how the global setting follows it, and some
    # refuse to read the global setting once a backend's has been set.
    backends = [
        backend for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul) if _has_own_precision(backend)
    ]
    chosen = [backend.fp32_precision for backend in backends]
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = None
    if precision == "highest":
        return lambda: None

    if precision is not None:
        torch.set_float32_matmul_precision("highest")
    for backend in backends:
        backend.fp32_precision = "ieee"

    def put_back() -> None:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for backend, own_precision in zip(backends, chosen, strict=True):
            backend.fp32_precision = own_precision

    return put_back


def _has_own_precision(backend: object) -> bool:
    try:
        return isinstance(backend.fp32_precision, str)
    except (AttributeError, AssertionError):  # older torch raises either for an unknown name
        return False
