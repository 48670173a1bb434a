"""In which precision geometry is computed: float32, or float64 if given, whatever is switched on outside.

`exact` and `working_dtype` say in which type, `full_precision` and `in_full_precision` keep matrix products to it.
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
    """Return the common floating type of tensors, float32 at least: half precision is widened, float64 stays.

    Args:
        tensors: any shapes and types; integers count as float32, None does not count.

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
        tensors: any shapes and types.

    >>> [tensor.dtype for tensor in exact(torch.zeros(1, dtype=torch.bfloat16))]
    [torch.float32]
    """
    dtype = working_dtype(*tensors)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in `full_precision`, its half-precision tensor arguments widened to float32.

    Float64 arguments stay float64, which is what gradcheck needs.

    Args:
        function: a function whose tensor arguments are passed directly (not inside containers).

    Returns:
        The same function, guarded.

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
    """Switch autocast and reduced-precision (TF32, bf16) float32 matrix products off within the block.

    Only what runs inside the block is covered: the backward pass of an operation is not, unless it opens its own block.

    Args:
        device: where the tensors of the block live.

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
    """Demand full float32 matrix products; calling what is returned restores the user's choice."""
    # Since torch 2.9 each backend has a setting of its own; releases differ in how the global one follows it, and some
    # refuse to read the global one once a backend's has been set.
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
    except (AttributeError, AssertionError):  # older torch raises either for a name it does not know
        return False
