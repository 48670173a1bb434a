"""Launching Triton kernels again without the inspection of every argument, which takes longer than a small kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["blocks", "is_interpreted", "relaunched"]

_OLDEST = (3, 3)
"""Release of Triton from which a compiled kernel is launched with all arguments, constants included."""


def blocks(count: int, size: int) -> int:
    """Return how many blocks of `size` hold `count`; `triton.cdiv` takes microseconds for the same.

    >>> blocks(0, 4), blocks(8, 4), blocks(9, 4)
    (0, 2, 3)
    """
    return -(-count // size)


def relaunched(kernel: Any) -> Any:
    """Return a kernel of `triton.jit` that launches what it has compiled before more quickly.

    Use it as a decorator on kernels that the host launches, never on those that other kernels call. Launch with numbers
    and tensors in their places and constants by name: `kernel[grid](a, b, size, BLOCK=64, num_warps=4)`. In Triton's
    interpreter the kernel stays as it is.
    """
    return _Relaunched(kernel) if hasattr(kernel, "device_caches") else kernel


def is_interpreted(kernel: Any) -> bool:
    """Return whether Triton runs a kernel in Python, on tensors of the CPU, as with TRITON_INTERPRET=1 for tests."""
    return not isinstance(kernel, _Relaunched)


class _Relaunched:
    """Finds what was compiled for the same device, types, alignments, sizes of numbers, constants and options.

    Triton compiles a kernel anew for numbers that are 1, multiples of 16 or beyond 32 bits, and for addresses that are
    multiples of 16 bytes. The key here tells at least these apart.
    """

    def __init__(self, kernel: Any) -> None:
        import triton

        self._kernel = kernel
        self._compiled: dict[tuple, tuple[Any, list[object]]] = {}
        self._constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        self._repeats = tuple(map(int, triton.__version__.split(".")[:2])) >= _OLDEST
        functools.update_wrapper(self, kernel.fn)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def warmup(self, *arguments: object, **constants: object) -> object:
        """Compile without a launch."""
        return self._kernel.warmup(*arguments, **constants)

    def _launch(self, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
        key = _key(arguments, constants)
        known = self._compiled.get(key)
        if known is not None:
            compiled, rest = known
            compiled[grid + (1,) * (3 - len(grid))](*arguments, *rest)
            return
        compiled = self._kernel[grid](*arguments, **constants)
        rest = self._kernel.arg_names[len(arguments) :]
        # Numbers and tensors by name would be kept with the constants: such a kernel is launched as Triton does it.
        if self._repeats and hasattr(compiled, "packed_metadata") and self._constants.issuperset(rest):
            self._compiled[key] = (compiled, [constants[name] for name in rest])


def _key(arguments: tuple[object, ...], constants: dict[str, object]) -> tuple:
    key: list[object] = [torch.cuda.current_device()]
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            key.append(argument.dtype)
            key.append(argument.data_ptr() & 15 == 0)
        elif type(argument) is int:
            key.append("1" if argument == 1 else (argument & 15 == 0, argument >> 31))
        else:
            key.append(type(argument))
            if isinstance(argument, bool):
                key.append(argument)
    key += constants.items()
    return tuple(key)
