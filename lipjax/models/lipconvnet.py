"""LipConvNet: orthogonal convolutions in blocks, each of which halves the image.

Every block is a row of 3 x 3 convolutions, the last of which follows a move of 2 x 2 pixels into the
channels and gives twice as many channels as the block began with; in the last block that convolution
is 1 x 1. An activation follows each, and a head reads the classes off what is left. With
`block_depth` n it is the LipConvNet-5n of the paper.

Reference: Singla, Feizi (2021), https://arxiv.org/abs/2105.11417; the normalized head by Singla,
Singla, Feizi (2022), https://arxiv.org/abs/2108.04062.
"""

import dataclasses

from flax import nnx

from lipjax import _checks, nn
from lipjax.layers import activations, pooling
from lipjax.models import _parts
from lipjax.typing import Array, Bound


@dataclasses.dataclass(frozen=True)
class LipConvNetConfig:
    """What a `LipConvNet` is made of.

    Attributes:
        layer: The convolutions, contractions of `ConvNetConfig`: `"skew"` in the paper, `"aol"`,
            `"rescaled"`, `"spectral"`, `"block"` or `"cayley"` (circular).
        image_shape: Height, width and channels; height and width are multiples of `2^blocks`.
        num_classes: Number of classes.
        width: Channels in the first block, 32 in the paper.
        blocks: Number of blocks.
        block_depth: Convolutions in a block; 1 to 8 are the paper's LipConvNet-5 to 40.
        activation: After each convolution.
        head: `"normalized"`, class vectors of norm 1, `"orthogonal"`, orthonormal ones, or
            `"projection"`, the first `num_classes` features: with these two the vector of logits is
            1-Lipschitz too.
        mean: Subtracted from the input, one number or one per channel.
        pad: Pixels of zeros around the image after that, an isometry.
    """

    layer: str = "skew"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    width: int = 32
    blocks: int = 5
    block_depth: int = 1
    activation: str = "max_min"
    head: str = "normalized"
    mean: tuple[float, ...] = (0.0,)
    pad: int = 0

    def __post_init__(self):
        _checks.one_of(_parts.CONTRACTIONS, layer=self.layer)
        for name in ("num_classes", "width", "blocks", "block_depth"):
            _checks.integer(1, **{name: getattr(self, name)})
        activations.one_lipschitz(self.activation)
        height, width = _parts.check_input(self)
        if height % 2**self.blocks or width % 2**self.blocks:
            raise ValueError(
                f"image_shape is {self.image_shape} and pad is {self.pad}; with {self.blocks} blocks "
                f"the padded height and width must be multiples of {2**self.blocks}."
            )
        channels = self.image_shape[2]
        if channels > self.width:
            raise ValueError(f"width is {self.width}; it must be at least the {channels} channels.")
        if self.block_depth > 1:
            _parts.check_convolution(self.layer, self.width, 3)
        _parts.check_head(self, self.features)

    @property
    def features(self) -> int:
        """Features that the head sees."""
        height, width = (side + 2 * self.pad for side in self.image_shape[:2])
        return self.width * 2**self.blocks * (height >> self.blocks) * (width >> self.blocks)


class LipConvNet(nnx.Module):
    """A classifier whose features are 1-Lipschitz.

    Args:
        config: A `LipConvNetConfig`.
        rngs: Random number generators.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> config = LipConvNetConfig(image_shape=(8, 8, 1), blocks=2, width=4)
        >>> model = nnx.eval_shape(lambda: LipConvNet(config, rngs=nnx.Rngs(0)))  # or the real one
        >>> jax.eval_shape(lambda model, x: model(x), model, jnp.ones((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(self, config: LipConvNetConfig, *, rngs: nnx.Rngs):
        if not isinstance(config, LipConvNetConfig):
            raise ValueError(f"config is {config!r}; it must be a LipConvNetConfig.")
        self.config = config
        height, width = (side + 2 * config.pad for side in config.image_shape[:2])
        rows, halvings = [], []
        channels = config.width if config.block_depth > 1 else config.image_shape[2]
        for i in range(config.blocks):
            if config.block_depth > 1:
                rows.append(self._row(channels, (height, width), rngs))
            height, width = height // 2, width // 2
            halvings.append(
                _parts.contraction(
                    config.layer,
                    4 * channels,
                    config.width * 2 ** (i + 1),
                    1 if i == config.blocks - 1 else 3,
                    image=(height, width),
                    rngs=rngs,
                )
            )
            channels = config.width * 2 ** (i + 1)
        self.rows = nnx.List(rows)
        self.halvings = nnx.List(halvings)
        self.head = _parts.head(config, config.features, rngs)

    def _row(self, channels, image, rngs):
        return nn.Stack(
            lambda rngs: _parts.contraction(
                self.config.layer, channels, channels, 3, image=image, rngs=rngs
            ),
            self.config.block_depth - 1,
            between=self.config.activation,
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        """Logits `float[..., classes]` of images `float[..., height, width, channels]` in [0, 1]."""
        return self.head(self.features(x))

    def features(self, x: Array) -> Array:
        """Features `float[..., features]` of images in [0, 1]."""
        activate = activations.one_lipschitz(self.config.activation)
        x = _parts.entered(x, self.config)
        if self.rows:
            x = pooling.pad_channels(x, self.config.width)
        for i, halving in enumerate(self.halvings):
            x = self.rows[i](x) if self.rows else x
            x = activate(halving(pooling.space_to_depth(x, 2)))
        return x.reshape(*x.shape[:-3], -1)

    def feature_bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of `features`."""
        total = Bound(1.0, "exact")
        for part in (*self.rows, *self.halvings):
            total = total * part.bound()
        return total

    def class_vectors(self) -> Array:
        """`float[features, classes]`, the `head` of `lipjax.margin.certify`."""
        return self.head.weights().kernel

    def bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of the network, from images to all logits."""
        return self.feature_bound() * self.head.bound()
