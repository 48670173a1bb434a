"""Sparse 3D convolution over voxels: tensors, kernel maps, layers, engines, U-Nets; no losses, no sampling, no data."""

from prior3d.sparse.convolution import Convolution, TransposedConvolution
from prior3d.sparse.coordinates import CoordinateMap
from prior3d.sparse.engines import Engine, available_engines, register_engine, select_engine
from prior3d.sparse.interpolation import interpolate
from prior3d.sparse.kernel_map import KernelMap, kernel_offsets
from prior3d.sparse.modules import BatchNorm, InstanceNorm, ReLU, concatenate, prune
from prior3d.sparse.pooling import AvgPool, AvgUnpool, GlobalPool, MaxPool, SumPool
from prior3d.sparse.quantize import Quantized, batch_coordinates, merge_duplicates, sparse_quantize
from prior3d.sparse.tensor import CoordinateManager, SparseTensor
from prior3d.sparse.unet import MinkUNet, mink_unet34c, mink_unet_small

__all__ = [
    "AvgPool",
    "AvgUnpool",
    "BatchNorm",
    "Convolution",
    "CoordinateManager",
    "CoordinateMap",
    "Engine",
    "GlobalPool",
    "InstanceNorm",
    "KernelMap",
    "MaxPool",
    "MinkUNet",
    "Quantized",
    "ReLU",
    "SparseTensor",
    "SumPool",
    "TransposedConvolution",
    "available_engines",
    "batch_coordinates",
    "concatenate",
    "interpolate",
    "kernel_offsets",
    "merge_duplicates",
    "mink_unet34c",
    "mink_unet_small",
    "prune",
    "register_engine",
    "select_engine",
    "sparse_quantize",
]
