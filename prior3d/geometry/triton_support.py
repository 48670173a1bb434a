"""Whether Triton kernels run on a device; modules of kernels are imported only where they do."""

import importlib
import logging
from functools import cache

import torch

_log = logging.getLogger(__name__)

OLDEST = (8, 0)
"""Lowest compute capability of the GPUs that the kernels are written for."""


def triton_runs_on(device: torch.device) -> bool:
    """Return whether Triton kernels run on a device: an NVIDIA GPU that is not too old, with Triton installed.

    >>> triton_runs_on(torch.device("cpu"))
    False
    """
    return device.type == "cuda" and _supported(device)


@cache
def _supported(device: torch.device) -> bool:
    if torch.version.hip or torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        importlib.import_module("triton")
    except ImportError:
        _log.warning("Triton is not installed: matches of pixels are searched in plain torch, many times slower")
        return False
    return True
