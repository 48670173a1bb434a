"""The decorator that keeps volume geometry in float32 (float64 if given) whatever is switched on outside."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from prior3d.geometry import full_precision

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in `full_precision`, its half-precision tensor arguments widened to float32.

    Float64 arguments stay float64, which is what gradcheck needs.

    Args:
        function: a function whose tensor arguments are passed directly (not inside containers).

    Returns:
        The same function, guarded.
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
