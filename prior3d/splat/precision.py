"""The precision everything in this folder is computed in."""

import torch


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Float64 stays float64 (gradient checks); everything else is computed in float32.

    Args:
        tensor: the tensor that decides, usually the means.

    Returns:
        `torch.float64` or `torch.float32`.
    """
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
