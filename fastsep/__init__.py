"""Fused kernels for the separable convolutions of low-complexity audio CNNs.

    y = time_taps * (pointwise @ x) + freq_taps * (pointwise @ x)

The layers in `fastsep.modules` train and run anywhere PyTorch does; `fuse` puts them into a model
you already have, `backends` says what runs here and why.
"""

import getpass
import os

from fastsep.audio import SparseFilters, log_mel, sparse_filters
from fastsep.batchnorm import batch_norm_affine
from fastsep.checks import BatchNormBlockParameters, BlockParameters
from fastsep.folding import fold_batchnorm
from fastsep.functional import (
    global_pool_mlp,
    sep_conv2d,
    sep_conv2d_block,
    sep_conv2d_bn_block,
    sep_conv2d_bn_stack,
    sep_conv2d_masked_stack,
    sep_conv2d_stack,
)
from fastsep.fusion import FuseReport, fuse, unfuse
from fastsep.kernels import BackendStatus, backends, use_backend
from fastsep.modules import SepConv2d, SepConvBlock, SepConvStack
from fastsep.version import __version__

__all__ = [
    "BackendStatus",
    "BatchNormBlockParameters",
    "BlockParameters",
    "FuseReport",
    "SepConv2d",
    "SepConvBlock",
    "SepConvStack",
    "SparseFilters",
    "__version__",
    "backends",
    "batch_norm_affine",
    "fold_batchnorm",
    "fuse",
    "global_pool_mlp",
    "log_mel",
    "sep_conv2d",
    "sep_conv2d_block",
    "sep_conv2d_bn_block",
    "sep_conv2d_bn_stack",
    "sep_conv2d_masked_stack",
    "sep_conv2d_stack",
    "sparse_filters",
    "unfuse",
    "use_backend",
]

try:
    getpass.getuser()
except (KeyError, OSError):  # a user id without an entry, as in `docker run --user`
    os.environ["USER"] = f"uid-{os.getuid()}"  # PyTorch's compiler and exporter ask for it
