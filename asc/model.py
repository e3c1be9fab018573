"""The networks: CNN6 and its separable 60 000-parameter form."""

import copy
import math
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from asc.augment import SpecAugment, apply_stripes
from asc.fitted import FittedOn
from asc.task import FLOOR, N_MELS, SCENES
from fastsep import SepConvBlock, SepConvStack, batch_norm_affine, fold_batchnorm, global_pool_mlp
from fastsep.batchnorm import BatchNorm, is_foldable, is_plain, per_bin_affine
from fastsep.hooks import has_global_hooks, has_hooks
from fastsep.modules import GlobalPool

WIDTHS = (64, 128, 128, 128)  # output channels of the blocks
MIN_FRAMES = 2 ** len(WIDTHS)  # every block halves T


class MelAffine(nn.Module):
    """Scale and shift per mel bin: what a folded BN-mel is. scale, shift: (256,).

    level: of `_Network.level`, which nothing tells any more once the statistics are folded away.
    """

    def __init__(self, scale: Tensor, shift: Tensor, level: float | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)
        self.level = level


class _Network(nn.Module):
    """What both networks share: BN-mel before the blocks, global pooling and the MLP after them.

    classes: names of the outputs; specaugment: the masks it is trained with. Checkpoints hold both.
    temperature: what the logits are divided by already, see `calibrated`; 1.0: not calibrated.
    fitted_on: the clips that the temperature was fitted on, where that is known.
    run: what it was trained with (`asc.training.settings.Settings`, as plain values); None where
    nothing tells.
    """

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        named = num_classes == len(SCENES)
        self.classes = SCENES if named else tuple(f"class {i}" for i in range(num_classes))
        self.specaugment = SpecAugment()
        self.temperature = 1.0
        self.fitted_on: FittedOn | None = None
        self.run: dict[str, Any] | None = None
        self.bn0: nn.BatchNorm2d | MelAffine = nn.BatchNorm2d(N_MELS)
        self.pool = GlobalPool()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(WIDTHS[-1], WIDTHS[-1])
        self.fc2 = nn.Linear(WIDTHS[-1], num_classes)

    def head(self, x: Tensor) -> Tensor:
        """Feature map (N, 128, T, F) -> logits (N, classes)."""
        layers = self._layers()
        return self.mlp(self.pool(x)) if layers is None else global_pool_mlp(x, layers)

    def _layers(self) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """The weights and biases of the head's layers, where they are all that it does."""
        dropout, fc1, fc2 = self.dropout, self.fc1, self.fc2
        linear = _is_bare(fc1, nn.Linear) and _is_bare(fc2, nn.Linear)
        bare = linear and _is_bare(self.pool, GlobalPool) and _is_bare(dropout, nn.Dropout)
        layered = dropout.training or not bare or has_global_hooks()
        if layered or fc1.bias is None or fc2.bias is None:
            return None
        return (fc1.weight, fc1.bias), (fc2.weight, fc2.bias)

    def mlp(self, x: Tensor) -> Tensor:
        """Pooled vectors (N, 128) -> logits (N, classes)."""
        x = torch.relu(self.fc1(self.dropout(x)))
        return self.fc2(self.dropout(x))

    @property
    def level(self) -> float | None:
        """Level of the recordings it was trained on: the mean of their log-mels, in dB.

        Averaged over the mel bins, of BN-mel's running means, without bins that were silent in all
        of them; None where they are not known: of a network that has not been trained, or was
        folded by something that did not keep it. Running means begin at 0; what that leaves in them
        after few batches is taken out.
        """
        bn = self.bn0
        if isinstance(bn, MelAffine):
            return bn.level
        mean = bn.running_mean if isinstance(bn, BatchNorm) else None
        if mean is None or not mean.any():
            return None
        batches = 0 if bn.num_batches_tracked is None else int(bn.num_batches_tracked)
        begun = (1 - bn.momentum) ** batches if bn.momentum and batches else 0
        means = mean.double() / (1 - begun)
        heard = means[means > FLOOR + 0.1]
        return heard.mean().item() if len(heard) else None

    def calibrated(self, temperature: float) -> Self:
        """A copy whose logits are those of this network divided by the temperature.

        The last layer's weights are divided, so that nothing that uses the network has to know.
        `temperature` of the copy is the product of all: logits times it are the original's.

        Args:
            temperature: positive; above 1, probabilities become less certain.

        Raises:
            ValueError: a temperature that is not positive and finite.

        Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        model = copy.deepcopy(self)
        with torch.no_grad():
            for parameter in model.fc2.parameters():
                parameter.div_(temperature)
        model.temperature *= temperature
        return model


def _is_bare(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the layer is what its class does: not replaced, not quantised, no hooks."""
    return type(layer) is kind and not has_hooks(layer)


class Cnn6Sep(_Network):
    """The DCASE 2021 Task 1A report's network: CNN6 with separable convolutions.

    Log-mel -> batch norm per mel bin -> four blocks (1 -> 64 -> 128 -> 128 -> 128 channels; see
    `fastsep.SepConvBlock`) -> mean over mel bins, then max over time plus mean over time -> MLP.

    Args:
        num_classes: number of outputs.
        dropout: probability, before each linear layer.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__(num_classes, dropout)
        widths = (1, *WIDTHS)
        self.blocks = SepConvStack(SepConvBlock(a, b) for a, b in pairwise(widths))

    def forward(self, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        """Logits of a batch.

        BN-mel and the stripes are applied as the first block loads its input, so in eval mode
        `logmel.expand(K, ...)` under K sets of stripes costs no K copies of it.

        Args:
            logmel: (N, 1, T, 256) in dB, T at least 16, of the parameters' dtype and device.
            stripes: integers (N, S, 3) of (axis, start, stop), set to 0 after BN-mel; see
                `asc.augment.draw_stripes`.

        Returns:
            (N, num_classes).

        Raises:
            ValueError, TypeError: shapes or dtypes that do not fit.
        """
        _check(logmel)
        affine = self._affine(logmel)
        if affine is None:
            return self.head(self.blocks(_per_bin(self.bn0, logmel), stripes=stripes))
        return self.head(self.blocks(logmel, affine=affine, stripes=stripes))

    def masked(self, logmel: Tensor, stripes: Tensor) -> Tensor:
        """Logits of K masked copies of each clip, sharing what the masks do not touch.

        To the last bit what `forward` gives for the copies; see `fastsep.sep_conv2d_masked_stack`.

        Args:
            logmel: (N, 1, T, 256), as for `forward`.
            stripes: integers (N, K, S, 3), or for a single clip (K, S, 3).

        Returns:
            (N, K, num_classes), or for a single clip's stripes (K, num_classes).

        Raises:
            ValueError, TypeError: shapes or dtypes that do not fit.
        """
        _check(logmel)
        if stripes.ndim == 3 and logmel.shape[0] == 1:
            return self.masked(logmel, stripes[None])[0]
        if stripes.ndim != 4 or stripes.shape[0] != logmel.shape[0]:
            clips = logmel.shape[0]
            raise ValueError(
                f"stripes must be (N, K, S, 3) = ({clips}, K, S, 3), or (K, S, 3) for a single "
                f"clip, got {tuple(stripes.shape)}"
            )
        copies = stripes.shape[:2]
        affine = self._affine(logmel)
        if affine is None or not self._is_as_built():
            each = logmel.repeat_interleave(copies[1], 0)
            return self(each, stripes.flatten(0, 1)).unflatten(0, copies)
        as_built = getattr(self.head, "__func__", None) is _Network.head
        layers = self._layers() if as_built else None
        y = self.blocks.masked(logmel, stripes, affine, layers)
        return y if layers is not None else self.head(y.flatten(0, 1)).unflatten(0, copies)

    def shares(self) -> bool:
        """Whether `masked` shares, here and as the model is; else it is `forward` on all copies."""
        known = isinstance(self.bn0, MelAffine) or is_foldable(self.bn0)
        return known and self._is_as_built() and self.blocks.shares()

    def _is_as_built(self) -> bool:
        """Whether `forward`, in eval mode, is what this class makes of its blocks."""
        bare = not has_hooks(self) and type(self).forward is Cnn6Sep.forward
        return bare and not self.training and _is_bare(self.blocks, SepConvStack)

    def _affine(self, logmel: Tensor) -> tuple[Tensor, Tensor] | None:
        """What BN-mel does to the bins, if that is all it does."""
        bn0 = self.bn0
        if isinstance(bn0, MelAffine):
            return bn0.scale, bn0.shift
        if has_global_hooks():
            return None
        if is_foldable(bn0):
            assert isinstance(bn0, BatchNorm) and bn0.running_mean is not None
            scale, shift = batch_norm_affine(bn0)
            return scale.to(bn0.running_mean.dtype), shift.to(bn0.running_mean.dtype)
        return per_bin_affine(bn0, logmel) if is_plain(bn0) else None

    @property
    def is_folded(self) -> bool:
        """Whether the batch norms are gone, see `folded`."""
        return isinstance(self.bn0, MelAffine)

    def folded(self, *, eps: float | None = None) -> Self:
        """A copy for inference with every batch norm folded away: 62 474 parameters (10 classes).

        The copy is in eval mode, needs no gradients and keeps the dtype. A folded network is copied
        as it is.

        Args:
            eps: instead of each batch norm's own 1e-5 in 1 / sqrt(var + eps). 0 reproduces the
                numbers published for the report's weights; do not use it for anything else, a
                channel that hardly ever varied in training blows up.

        Source: DCASE 2021 Task 1A report, eq. 3-5.
        """
        model = fold_batchnorm(self, eps=eps)
        if isinstance(model.bn0, BatchNorm):
            with torch.no_grad():
                affine = batch_norm_affine(model.bn0, eps)
            scale, shift = (tensor.to(self.fc1.weight.dtype) for tensor in affine)
            model.bn0 = MelAffine(scale, shift, self.level)
        return model.requires_grad_(False)


class Cnn6(_Network):
    """CNN6 of PANNs at the separable network's widths, for comparison.

    Four dense 5x5 convolutions (padding 2, no bias) of 64, 128, 128, 128 channels, each followed by
    batch norm, ReLU and 2x2 average pooling; the rest is `Cnn6Sep`'s. PANNs itself goes to 512.

    Source: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks", 2020.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__(num_classes, dropout)
        widths = (1, *WIDTHS)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 5, padding=2, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(),
                    nn.AvgPool2d(2),
                )
                for a, b in pairwise(widths)
            )
        )

    def forward(self, logmel: Tensor, stripes: Tensor | None = None) -> Tensor:
        """As `Cnn6Sep.forward`."""
        _check(logmel)
        x = _per_bin(self.bn0, logmel)
        if stripes is not None:
            x = apply_stripes(x, stripes)
        return self.head(self.blocks(x))


def _check(logmel: Tensor) -> None:
    if logmel.ndim != 4 or logmel.shape[1] != 1 or logmel.shape[3] != N_MELS:
        raise ValueError(f"logmel must be (N, 1, T, {N_MELS}), got {tuple(logmel.shape)}")
    if logmel.shape[2] < MIN_FRAMES:
        raise ValueError(
            f"logmel must have at least {MIN_FRAMES} frames, since four blocks halve them, "
            f"got {logmel.shape[2]}"
        )


def _per_bin(bn0: nn.Module, logmel: Tensor) -> Tensor:
    """Batch norm over the mel bins: the F axis takes the place of the channels."""
    return bn0(logmel.transpose(1, 3)).transpose(1, 3)
