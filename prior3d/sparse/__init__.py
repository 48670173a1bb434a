"""Sparse 3D convolution over voxels: tensors, kernel maps, layers, U-Nets; no losses, no sampling, no data.

The layers keep MinkowskiEngine's conventions and parameter names, so its networks and their weights carry over. Users
of this package rely on that: the poolings, InstanceNorm, `interpolate`, `prune`, `batch_coordinates` and
`merge_duplicates` are part of it, although no prior here needs them. `engine` names the engine that convolves: an
installed engine, or `auto`; see `prior3d.registry.engines`.
"""

from prior3d.contracts.kernel_map import KernelMap
from prior3d.sparse.convolution import Convolution, TransposedConvolution
from prior3d.sparse.coordinates import CoordinateMap
from prior3d.sparse.grids import PendingGrid, PointGrid, grids_in_one_pass, start_grid
from prior3d.sparse.interpolation import interpolate
from prior3d.sparse.kernel_map import kernel_offsets
from prior3d.sparse.minkowski import load_minkowski_state_dict
from prior3d.sparse.modules import BatchNorm, InstanceNorm, ReLU, concatenate, prune
from prior3d.sparse.pooling import AvgPool, AvgUnpool, GlobalPool, MaxPool, SumPool
from prior3d.sparse.quantize import Quantized, batch_coordinates, merge_duplicates, sparse_quantize
from prior3d.sparse.reference import convolve
from prior3d.sparse.tensor import CoordinateManager, SparseTensor
from prior3d.sparse.unet import MinkUNet, mink_unet34c, mink_unet_small

__all__ = [
    "AvgPool",
    "AvgUnpool",
    "BatchNorm",
    "Convolution",
    "CoordinateManager",
    "CoordinateMap",
    "GlobalPool",
    "InstanceNorm",
    "KernelMap",
    "MaxPool",
    "MinkUNet",
    "PendingGrid",
    "PointGrid",
    "Quantized",
    "ReLU",
    "SparseTensor",
    "SumPool",
    "TransposedConvolution",
    "batch_coordinates",
    "concatenate",
    "convolve",
    "grids_in_one_pass",
    "interpolate",
    "kernel_offsets",
    "load_minkowski_state_dict",
    "merge_duplicates",
    "mink_unet34c",
    "mink_unet_small",
    "prune",
    "sparse_quantize",
    "start_grid",
]
