"""The convolutional network of the comparison study of 1-Lipschitz layers, for any convolution.

Append channels of zeros to the width, a 1 x 1 convolution, five blocks of convolutions each followed
by half of the channels and a move of 2 x 2 pixels into the channels (which halves the size and doubles
the width), a maximum over what is left of the image, a 1 x 1 convolution, and the first channels as
logits. Every part is 1-Lipschitz, so the vector of logits is: two of them differ by at most sqrt(2)
times a change of the input. As in the study, AOL scales the inputs, it and the block convolution
have circular padding, and channels are numbered as PyTorch does.

Reference: Prach, Brau, Buttazzo, Lampert (2024), https://arxiv.org/abs/2311.16833.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from lipjax import _checks, nn
from lipjax.layers import activations, pooling
from lipjax.models import _parts
from lipjax.models.convnet import CONVOLUTIONAL, ConvNetConfig, conv_layer
from lipjax.typing import Array, Bound


@dataclasses.dataclass(frozen=True)
class StudyNetConfig:
    """What a `StudyNet` is made of.

    Attributes:
        layer: The convolutions: one of those of `ConvNetConfig` that exist.
        image_shape: Height, width and channels; height and width are multiples of `2^blocks`.
        num_classes: Number of classes.
        width: Channels of the first block; 16, 32, 64 and 128 are the study's XS, S, M and L.
        blocks: Number of blocks.
        block_depth: Convolutions in a block.
        kernel_size: Window, 1 in the last block.
        conv_hidden: Hidden channels of SLL and CPL; None means as many as there are channels.
        activation: After each convolution, also after SLL and CPL; in the study MaxMin of neighbouring
            channels.
        mean: Subtracted from the input, one number or one per channel.
        pad: Pixels of zeros around the image after that, an isometry: 2 makes 28 x 28 images 32 x 32.
    """

    layer: str = "aol"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    width: int = 16
    blocks: int = 5
    block_depth: int = 5
    kernel_size: int = 3
    conv_hidden: int | None = None
    activation: str = "adjacent_max_min"
    mean: tuple[float, ...] = (0.0,)
    pad: int = 0

    def __post_init__(self):
        _checks.one_of(CONVOLUTIONAL, layer=self.layer)
        for name in ("num_classes", "width", "blocks", "block_depth", "kernel_size"):
            _checks.integer(1, **{name: getattr(self, name)})
        if self.conv_hidden is not None:
            _checks.integer(1, conv_hidden=self.conv_hidden)
        activations.one_lipschitz(self.activation)
        height, width = _parts.check_input(self)
        channels = self.image_shape[2]
        if height % 2**self.blocks or width % 2**self.blocks:
            raise ValueError(
                f"image_shape is {self.image_shape} and pad is {self.pad}; with {self.blocks} blocks "
                f"the padded height and width must be multiples of {2**self.blocks}."
            )
        if channels > self.width or self.width % 2:
            raise ValueError(
                f"width is {self.width}; it must be even and at least the {channels} channels."
            )
        if self.blocks > 1:  # the last one's window is 1
            _parts.check_convolution(self.layer, self.width, self.kernel_size)
        if self.num_classes > self.features:
            raise ValueError(
                f"num_classes is {self.num_classes}; the network has only {self.features} outputs."
            )

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width with the zeros around."""
        return self.image_shape[0] + 2 * self.pad, self.image_shape[1] + 2 * self.pad

    @property
    def features(self) -> int:
        """Width after the last block."""
        return self.width * 2**self.blocks


class StudyNet(nnx.Module):
    """A classifier whose logits are 1-Lipschitz as a vector.

    Args:
        config: A `StudyNetConfig`.
        rngs: Random number generators.

    Example:
        >>> config = StudyNetConfig(image_shape=(4, 4, 1), blocks=1, block_depth=1, width=8)
        >>> model = StudyNet(config, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 4, 4, 1))).shape, model.bound().kind
        ((2, 10), 'upper')
    """

    def __init__(self, config: StudyNetConfig, *, rngs: nnx.Rngs):
        if not isinstance(config, StudyNetConfig):
            raise ValueError(f"config is {config!r}; it must be a StudyNetConfig.")
        self.config = config
        height, width = config.padded_size
        self.first = self._stack(1, config.width, 1, (height, width), rngs)
        stages = []
        for i in range(config.blocks):
            size = 1 if i == config.blocks - 1 else config.kernel_size
            image = (height // 2**i, width // 2**i)
            stages.append(self._stack(config.block_depth, config.width * 2**i, size, image, rngs))
        self.stages = nnx.List(stages)
        self.last = self._layer(config.features, 1, (1, 1), rngs)

    def _layer(self, channels, kernel_size, image, rngs):
        config = ConvNetConfig(
            layer=self.config.layer,
            image_shape=(*image, channels),
            conv_width=channels,
            conv_hidden=self.config.conv_hidden or channels,
            kernel_size=kernel_size,
            pool=1,
        )
        return conv_layer(config, {}, rngs, **_PUBLISHED.get(self.config.layer, {}))

    def _stack(self, depth, channels, kernel_size, image, rngs):
        return nn.Stack(
            lambda rngs: self._layer(channels, kernel_size, image, rngs),
            depth,
            between=self.config.activation,
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        """Logits `float[..., classes]` of images `float[..., height, width, channels]` in [0, 1]."""
        return pooling.first_channels(self.features(x), self.config.num_classes)

    def features(self, x: Array) -> Array:
        """The vector that the logits are the beginning of, `float[..., features]`."""
        config = self.config
        x = _parts.entered(x, config)
        x = self.first(pooling.pad_channels(x, config.width))
        for stage in self.stages:
            x = stage(x)
            x = _unshuffled(pooling.first_channels(x, x.shape[-1] // 2))
        x = x.max(axis=(-3, -2), keepdims=True)
        return self.last(x)[..., 0, 0, :]

    def feature_bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of `features`."""
        total = self.first.bound()
        for stage in self.stages:
            total = total * stage.bound()
        return total * self.last.bound()

    def class_vectors(self) -> Array:
        """`float[features, classes]`: unit vectors, the `head` of `lipjax.margin.certify`."""
        return jnp.eye(self.config.features, self.config.num_classes)

    def bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of the network, from images to all logits."""
        return self.feature_bound()


_PUBLISHED = {
    "aol": {"side": "input", "padding": "circular"},
    "block": {"padding": "circular"},
}


def _unshuffled(x):
    """2 x 2 pixels moved into the channels, ordered (channel, row, column)."""
    channels = x.shape[-1]
    x = pooling.space_to_depth(x, 2)
    return x.reshape(*x.shape[:-1], 4, channels).swapaxes(-1, -2).reshape(x.shape)
