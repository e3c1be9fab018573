"""The operators on a GPU with the cross in CUDA C++, for inference: use_backend("cuda")."""

from functools import partial

import torch
from torch import Tensor

from fastsep.layouts import accumulator, memory_format


def sep_conv2d(
    x: Tensor,
    pointwise: Tensor,
    time_taps: Tensor,
    freq_taps: Tensor,
    bias: Tensor | None,
    dilation: int,
    pool: int = 1,
    relu: bool = False,
) -> Tensor:
    """The 1x1 convolution by PyTorch, the rest in one pass; arguments as in `fastsep.ops`."""
    wide = accumulator(x.dtype)
    z = torch.einsum("ck,nktf->nctf", pointwise.to(wide), x.to(wide))
    weights = [None if w is None else w.to(wide) for w in (time_taps, freq_taps, bias)]
    y = torch.ops.fastsep_cuda.cross(z, *weights, dilation, pool, relu)
    return y.to(x.dtype, memory_format=memory_format(x))


sep_conv2d_block = partial(sep_conv2d, relu=True)
