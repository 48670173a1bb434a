"""Sparse convolution with Triton kernels: implicit products over tiles of rows that skip empty offsets."""

import functools
import importlib.util

import torch
from torch import Tensor

from prior3d import SparseEngine
from prior3d.sparse import KernelMap

_OLDEST = (8, 0)
"""Compute capability with matrix units for bfloat16 and tf32."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class SparseTriton(SparseEngine):
    """Implicit matrix products over a kernel map, on NVIDIA GPUs; float32 as torch's own products, tf32 if allowed.

    Output rows are sorted by their sets of occupied offsets, so that a tile of rows multiplies only by the weights that
    one of its rows needs, and writes each row once: no atomic sums. Block sizes are timed at the first call of a class
    of shapes and kept in `~/.cache/prior3d/sparse_triton`; they change no result.

    Reference:
        Tang et al., TorchSparse++, 2023, arXiv 2311.12862, for masked implicit products in the order of masks. Rows are
        ordered by a Gray code with the rarest offset first, and the gradient of the weight is summed in pieces.
    """

    rank = 20

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what is missing, or None."""
        instead = "take engine sparse/torch"
        if dtype not in _DTYPES:
            return f"it computes float16, bfloat16 and float32, not {dtype}: convert, or {instead}"
        if importlib.util.find_spec("triton") is None:
            return f"Triton is not installed: pip install triton, or {instead}"
        if device.type == "cpu" and _interpreted():
            return None
        if device.type != "cuda":
            return f"Triton runs on CUDA devices, not on {device.type}: install a CUDA build of PyTorch, or {instead}"
        return _missing(device)

    def convolve(self, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        """See `SparseEngine.convolve`."""
        from prior3d_plugins.engines.sparse_triton.operation import convolve

        return convolve(features, weight, kernel_map)


@functools.cache
def _missing(device: torch.device) -> str | None:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA GPU: install a CUDA build and a driver, or take engine sparse/torch"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        found, needed = (".".join(map(str, version)) for version in (capability, _OLDEST))
        return f"the GPU has compute capability {found}, below {needed}: take engine sparse/torch"
    return None


def _interpreted() -> bool:
    from prior3d_plugins.engines.sparse_triton.kernels import interpreted

    return interpreted()
