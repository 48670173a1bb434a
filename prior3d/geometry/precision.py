"""A region in which matrix products keep all bits of float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and reduced-precision (TF32, bf16) float32 matrix products off within the block.

    Only what runs inside the block is covered: the backward pass of an operation is not, unless it opens its own block.

    Args:
        device: where the tensors of the block live.
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
