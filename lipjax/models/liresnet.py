"""Networks in the style of LiResNet and BRONet: a wide trunk of one resolution and a dense tail.

Move 2 x 2 pixels into the channels, one convolution to the width (the stem), a row of convolutions
(the trunk), one matrix on blocks of `patch` x `patch` pixels and one on all that is left (the neck),
a row of square matrices (the tail), and a normalized head. An activation follows each but the first
matrix of the neck. The published sizes have the same parameters, up to a stem of 5 x 5 with stride 2,
which the 3 x 3 on blocks of 2 x 2 pixels here contains.

Where it differs: the trunk of LiResNet has no norm of 1; there the certificate multiplies the norms of
its convolutions `identity + W / sqrt(depth)`, by power iteration, which is a bound from below. Here
`layer="spectral"` divides each by a bound of its norm, starting at the identity too, so the features
are 1-Lipschitz. BRONet's trunk (`layer="reflector"`) is circular here and padded with zeros there. The
moving means of both are left out: biases do what they do, and no example depends on its batch mates.

Reference: Hu et al. (2023), https://arxiv.org/abs/2301.12549; Lai et al. (2025),
https://arxiv.org/abs/2505.15174.
"""

import dataclasses

from flax import nnx

from lipjax import _checks, nn
from lipjax.layers import activations, pooling
from lipjax.models import _parts
from lipjax.typing import Array, Bound


@dataclasses.dataclass(frozen=True)
class LiResNetConfig:
    """What a `LiResNet` is made of; the defaults are the published L12W512 for CIFAR-10.

    Attributes:
        layer: Convolutions of the trunk: `"spectral"` for LiResNet, `"reflector"` for BRONet, or
            `"aol"`, `"rescaled"`, `"skew"`, `"block"`, `"cayley"`.
        image_shape: Height, width and channels; with `pad` on both sides, multiples of `2 * patch`.
        num_classes: Number of classes.
        width: Channels of the trunk.
        depth: Convolutions of the trunk.
        patch: Side of the blocks of pixels that the neck turns into one.
        dense_width: Features of the tail.
        dense_depth: Matrices of the tail.
        activation: Between layers.
        head: `"normalized"`, class vectors of norm 1, `"orthogonal"`, orthonormal ones, or
            `"projection"`, the first `num_classes` features: with these two the vector of logits is
            1-Lipschitz too.
        mean: Subtracted from the input, one number or one per channel.
        pad: Pixels of zeros around the image after that, an isometry.
    """

    layer: str = "spectral"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    width: int = 512
    depth: int = 12
    patch: int = 4
    dense_width: int = 2048
    dense_depth: int = 8
    activation: str = "max_min"
    head: str = "normalized"
    mean: tuple[float, ...] = (0.5,)
    pad: int = 0

    def __post_init__(self):
        _checks.one_of((*_parts.CONTRACTIONS, "reflector"), layer=self.layer)
        for name in ("num_classes", "width", "depth", "patch", "dense_width", "dense_depth"):
            _checks.integer(1, **{name: getattr(self, name)})
        activations.one_lipschitz(self.activation)
        _parts.check_convolution(self.layer, self.width, 3)
        _parts.check_head(self, self.dense_width)
        height, width = _parts.check_input(self)
        if height % (2 * self.patch) or width % (2 * self.patch):
            raise ValueError(
                f"patch is {self.patch} and image_shape is {self.image_shape} with pad {self.pad}; the "
                f"padded height and width must be multiples of {2 * self.patch}."
            )

    @property
    def trunk_size(self) -> tuple[int, int]:
        """Height and width in the trunk."""
        return tuple((side + 2 * self.pad) // 2 for side in self.image_shape[:2])


class LiResNet(nnx.Module):
    """A classifier whose features are 1-Lipschitz.

    Args:
        config: A `LiResNetConfig`.
        rngs: Random number generators.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> config = LiResNetConfig(
        ...     image_shape=(8, 8, 1), width=4, depth=2, patch=2, dense_width=16, dense_depth=1
        ... )
        >>> model = nnx.eval_shape(lambda: LiResNet(config, rngs=nnx.Rngs(0)))  # or the real one
        >>> jax.eval_shape(lambda model, x: model(x), model, jnp.ones((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(self, config: LiResNetConfig, *, rngs: nnx.Rngs):
        if not isinstance(config, LiResNetConfig):
            raise ValueError(f"config is {config!r}; it must be a LiResNetConfig.")
        self.config = config
        width, image = config.width, config.trunk_size
        self.stem = nn.SpectralConv(4 * config.image_shape[2], width, rngs=rngs)
        self.trunk = nn.Stack(self._convolution, config.depth, between=config.activation, rngs=rngs)
        self.patches = nn.CholeskyDense(config.patch**2 * width, width, rngs=rngs)
        flat = width * (image[0] // config.patch) * (image[1] // config.patch)
        self.flat = nn.CholeskyDense(flat, config.dense_width, rngs=rngs)
        self.tail = nn.Stack(
            lambda rngs: nn.CholeskyDense(config.dense_width, config.dense_width, rngs=rngs),
            config.dense_depth,
            between=config.activation,
            rngs=rngs,
        )
        self.head = _parts.head(config, config.dense_width, rngs)

    def _convolution(self, rngs):
        config = self.config
        if config.layer == "reflector":
            size = config.trunk_size
            return nn.ReflectorConv(config.width, depth=config.depth, input_size=size, rngs=rngs)
        width = config.width
        return _parts.contraction(config.layer, width, width, 3, image=config.trunk_size, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Logits `float[..., classes]` of images `float[..., height, width, channels]` in [0, 1]."""
        return self.head(self.features(x))

    def features(self, x: Array) -> Array:
        """Features `float[..., dense_width]` of images in [0, 1]."""
        activate = activations.one_lipschitz(self.config.activation)
        x = pooling.space_to_depth(_parts.entered(x, self.config), 2)
        x = self.trunk(activate(self.stem(x)))
        x = self.patches(pooling.space_to_depth(x, self.config.patch))
        x = activate(self.flat(x.reshape(*x.shape[:-3], -1)))
        return self.tail(x)

    def feature_bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of `features`."""
        total = self.stem.bound() * self.trunk.bound()
        return total * self.patches.bound() * self.flat.bound() * self.tail.bound()

    def class_vectors(self) -> Array:
        """`float[features, classes]`, the `head` of `lipjax.margin.certify`."""
        return self.head.weights().kernel

    def bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of the network, from images to all logits."""
        return self.feature_bound() * self.head.bound()
