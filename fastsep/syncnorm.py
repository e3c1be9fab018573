"""Batch norm whose statistics are those of all processes, on CPUs too, where PyTorch has none."""

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fastsep.training import track


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` of one batch that lies in parts in the processes of the default group.

    In train mode every process has to call it, each with at least one value a channel; mean and
    variance are those of all values, and so are the running statistics. Gradients flow through the
    statistics to every process. Otherwise, and where there is one process, it is `nn.BatchNorm2d`.
    """

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Puts one in the place of every `nn.BatchNorm2d`, with its parameters and buffers.

        Returns:
            The module itself, changed; the new layer if it is a batch norm.
        """
        if type(module) is nn.BatchNorm2d:
            made = cls(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                device="meta",
            )
            made._parameters, made._buffers = module._parameters, module._buffers
            return made.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert(child))
        return module

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        if dist.get_world_size() == 1:
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce  # only builds for it have it

        self._check_input_dim(x)
        values = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        # In float64 the sum of squares loses nothing: it is of C numbers, not of the map.
        local, spread = mean.double(), variance.double()
        moments = torch.stack([torch.ones_like(local), local, spread + local.square()])
        total, mean, square = all_reduce(count * moments)
        mean, square = mean / total, square / total
        variance = (square - mean.square()).clamp(min=0)
        track(self.running_mean, self.running_var, self.num_batches_tracked, self.momentum,
              (mean, variance), int(total[0]))  # fmt: skip
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        scale, shift = (t.to(values.dtype)[:, None, None] for t in (scale, shift))
        return torch.addcmul(shift, values, scale).to(x.dtype)
