"""ResNets of basic blocks from the plain arrays of a PyTorch `state_dict`, in evaluation.

The arrays are named as in torchvision's `resnet18` and `resnet34`: `conv1.weight`, `bn1.weight`,
`bn1.bias`, `bn1.running_mean`, `bn1.running_var`, `layer1.0.conv1.weight`, ...,
`layer2.0.downsample.0.weight`, ..., `fc.weight`, `fc.bias`. No PyTorch is needed: any mapping from
names to arrays will do, for example what `safetensors.numpy.load_file` returns.

The network is an ordinary one. `lipjax.spectral.network_bound` bounds it as it stands.

Reference: He et al. (2016), https://arxiv.org/abs/1512.03385.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax.typing import Array

BATCH_NORM_EPS = 1e-5
"""The default of PyTorch."""


def from_state_dict(arrays: Mapping[str, Array]) -> Callable[[Array], Array]:
    """The network of a state dict, from images `float[batch, height, width, 3]` to logits.

    A first convolution with a window of 7 has stride 2 and is followed by max pooling, as for
    ImageNet; any other has stride 1 and is not, as for small images.

    Args:
        arrays: Arrays by name, in PyTorch's layout (kernels OIHW); NumPy or JAX.

    Returns:
        The function. Images are NHWC, normalized as the network was trained.

    Raises:
        ValueError: for a missing array, or one of the wrong rank.

    >>> import jax, numpy as np
    >>> try:
    ...     from_state_dict({"conv1.weight": np.zeros((8, 3, 3, 3), np.float32)})
    ... except ValueError as error:
    ...     print(str(error)[:47])
    arrays has no 'bn1.weight'; it must hold the st
    """
    params = {name: jnp.asarray(value) for name, value in arrays.items()}

    def take(name, rank):
        if name not in params:
            raise ValueError(
                f"arrays has no {name!r}; it must hold the state dict of a torchvision ResNet of "
                "basic blocks (resnet18 or resnet34)."
            )
        _checks.ranked(rank, **{f"arrays[{name!r}]": params[name]})
        return params[name]

    def conv_of(name):
        return jnp.transpose(take(f"{name}.weight", 4), (2, 3, 1, 0))

    def norm_of(name):
        scale, bias, mean, var = (
            take(f"{name}.{part}", 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale * lax.rsqrt(var + BATCH_NORM_EPS)
        return factor, bias - mean * factor

    def block_of(name):
        parts = [conv_of(f"{name}.conv1"), norm_of(f"{name}.bn1")]
        parts += [conv_of(f"{name}.conv2"), norm_of(f"{name}.bn2")]
        if f"{name}.downsample.0.weight" in params:
            parts += [conv_of(f"{name}.downsample.0"), norm_of(f"{name}.downsample.1")]
        return parts

    stem, stem_norm = conv_of("conv1"), norm_of("bn1")
    stages = []
    while f"layer{len(stages) + 1}.0.conv1.weight" in params:
        stage, blocks = f"layer{len(stages) + 1}", []
        while f"{stage}.{len(blocks)}.conv1.weight" in params:
            blocks.append(block_of(f"{stage}.{len(blocks)}"))
        stages.append(blocks)
    head, head_bias = take("fc.weight", 2).T, take("fc.bias", 1)
    large = stem.shape[0] == 7

    def apply(x):
        x = _checks.array(x=x)
        _checks.ranked(4, "[batch, height, width, channels]", x=x)
        _checks.axis_size(3, stem.shape[2], "the channels of conv1.weight", x=x)
        x = jax.nn.relu(_affine(_convolve(x, stem, 2 if large else 1), stem_norm))
        if large:
            x = lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
            )
        for index, blocks in enumerate(stages):
            for place, block in enumerate(blocks):
                x = _block(x, block, 2 if index and not place else 1)
        return jnp.mean(x, axis=(1, 2)) @ head + jnp.broadcast_to(head_bias, (1, len(head_bias)))

    return apply


def _block(x, parts, stride):
    first, first_norm, second, second_norm, *short = parts
    y = jax.nn.relu(_affine(_convolve(x, first, stride), first_norm))
    y = _affine(_convolve(y, second, 1), second_norm)
    if short:
        x = _affine(_convolve(x, short[0], stride), short[1])
    return jax.nn.relu(y + x)


def _convolve(x, kernel, stride):
    pads = [((k - 1) // 2, (k - 1) // 2) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _affine(x, factor_and_bias):
    factor, bias = (v.reshape(1, 1, 1, -1) for v in factor_and_bias)
    return x * factor + bias
