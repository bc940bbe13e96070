"""The convolutional networks of the SLL paper, in its four sizes and smaller ones.

Shift the input by its mean, move pixel blocks into channels if asked, pad the channels with zeros
to the width, apply the convolutional layers, pool, flatten, apply the dense layers, and read the
classes off a normalized head. Every part is 1-Lipschitz, so the features are, whatever the
parameters.

Reference: Araujo et al. (2023), https://arxiv.org/abs/2303.03169.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _checks, nn
from lipjax.layers import activations, pooling
from lipjax.models import _parts
from lipjax.typing import Array, Bound

INSIDE = ("sll", "cpl", "sandwich")
CONVOLUTIONAL = (*INSIDE, *_parts.CONTRACTIONS, "reflector")
LAYERS = (*CONVOLUTIONAL, "bjorck", "householder", "qr", "cholesky")


@dataclasses.dataclass(frozen=True)
class ConvNetConfig:
    """What a `LipschitzConvNet` is made of.

    Attributes:
        layer: What the layers are. `"sll"`, `"cpl"` and `"sandwich"` have their activation inside;
            the contractions `"aol"`, `"rescaled"`, `"spectral"`, `"bjorck"`, `"cayley"`,
            `"householder"`, `"reflector"`, `"qr"`, `"cholesky"`, `"skew"` and `"block"` have one
            between them. (`"block"` is the block-orthogonal convolution, with Björck's dense layers.)
            Björck, Householder, QR and Cholesky have no convolution: `conv_depth` is then 0.
            Cayley, reflector and sandwich convolutions are circular.
        form: `"linear"`, or `"residual"` to put a contraction into `lipjax.nn.Residual`.
        image_shape: Height, width and channels of the input.
        num_classes: Number of classes.
        patch: Side of the pixel blocks that are moved into channels first (an isometry); 1 for none.
        conv_depth: Number of convolutional layers; 0 for a dense network.
        conv_width: Channels of the convolutional layers; zeros are appended to the input's.
        conv_hidden: Hidden channels of a residual convolution (not used by AOL).
        kernel_size: Window of the convolutions.
        pool: Window of the average pooling after the convolutions, scaled to norm 1.
        dense_depth: Number of dense layers; 0 for none.
        dense_width: Features of the dense layers; zeros are appended to the flattened features.
            None keeps those.
        dense_hidden: Hidden units of a residual dense layer (not used by AOL).
        activation: Inside layers with a skip and sandwich layers, or between contractions. None
            means ReLU inside and MaxMin between.
        head: `"normalized"`, class vectors of norm 1, `"orthogonal"`, orthonormal ones, or
            `"projection"`, the first `num_classes` features, counted channel by channel as the CPL
            paper's code does: with these two the vector of logits is 1-Lipschitz too.
        mean: Subtracted from the input, one number or one per channel.
        std: The input is divided by it, one number or one per channel; the network's Lipschitz
            constant is then `1 / min(std)`, and `bound` counts it.
    """

    layer: str = "sll"
    form: Literal["linear", "residual"] = "linear"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    patch: int = 1
    conv_depth: int = 20
    conv_width: int = 45
    conv_hidden: int = 5
    kernel_size: int = 3
    pool: int = 4
    dense_depth: int = 7
    dense_width: int | None = None
    dense_hidden: int = 2048
    activation: str | None = None
    head: str = "normalized"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        _checks.one_of(LAYERS, layer=self.layer)
        _checks.one_of(("linear", "residual"), form=self.form)
        if self.form == "residual" and self.layer in INSIDE:
            raise ValueError(
                f"form is 'residual' and layer is {self.layer!r}, which has its activation inside; "
                f"only contractions can be put into a form: {sorted(set(LAYERS) - set(INSIDE))}."
            )
        if self.conv_depth and self.layer not in CONVOLUTIONAL:
            raise ValueError(
                f"layer is {self.layer!r}, which has no convolution, and conv_depth is "
                f"{self.conv_depth}; use conv_depth=0, or one of {list(CONVOLUTIONAL)}."
            )
        for name in ("image_shape", "mean", "std"):  # lists and single numbers are welcome
            value = getattr(self, name)
            value = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,)
            object.__setattr__(self, name, value)
        if self.activation is not None:
            if self.activation_inside:
                activations.slope_restricted(self.activation)
            else:
                activations.one_lipschitz(self.activation)
        for name in ("num_classes", "patch", "conv_width", "conv_hidden", "kernel_size", "pool"):
            _checks.integer(1, **{name: getattr(self, name)})
        for name in ("conv_depth", "dense_depth"):
            _checks.integer(0, **{name: getattr(self, name)})
        _checks.integer(1, dense_hidden=self.dense_hidden)
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(
                f"image_shape is {self.image_shape}; it must be (height, width, channels)."
            )
        height, width, channels = self.image_shape
        cells = self.patch * self.pool
        if height % cells or width % cells:
            raise ValueError(
                f"patch is {self.patch} and pool is {self.pool}; their product must divide the "
                f"height and width of {self.image_shape}."
            )
        if self.conv_depth and channels * self.patch**2 > self.conv_width:
            raise ValueError(
                f"conv_width is {self.conv_width}; it must be at least the "
                f"{channels * self.patch**2} channels of the image after patching."
            )
        if self.conv_depth:
            _parts.check_convolution(self.layer, self.conv_width, self.kernel_size)
        if self.dense_width is not None:
            _checks.integer(1, dense_width=self.dense_width)
        for side in self.image_shape:
            _checks.integer(1, image_shape=side)
        if self.dense_width is not None and self.dense_width < self.flat_features:
            raise ValueError(
                f"dense_width is {self.dense_width}; it must be None or at least the "
                f"{self.flat_features} features that the pooling leaves."
            )
        _parts.check_head(self, self.features)
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must have 1 or {channels} entries."
                )
        _checks.within(1e-6, 1e6, std=self.std)
        _checks.within(-1e6, 1e6, mean=self.mean)

    @property
    def activation_inside(self) -> bool:
        """Whether the layers have their activation inside rather than between them."""
        return self.layer in INSIDE or self.form == "residual"

    @property
    def flat_features(self) -> int:
        """Features after pooling and flattening."""
        height, width, channels = self.image_shape
        cells = self.patch * self.pool
        channels = self.conv_width if self.conv_depth else channels * self.patch**2
        return (height // cells) * (width // cells) * channels

    @property
    def features(self) -> int:
        """Features that the head sees."""
        return self.dense_width or self.flat_features

    @property
    def input_lipschitz(self) -> float:
        """Lipschitz constant of the input normalization, rounded up."""
        constant = 1 / min(self.std)
        return constant if constant == 1 else constant * (1 + 1e-6)


CIFAR10_MEAN = (0.4913, 0.4821, 0.4465)
SIZES = {
    "S": ConvNetConfig(conv_depth=20, conv_width=45, dense_depth=7, mean=CIFAR10_MEAN),
    "M": ConvNetConfig(conv_depth=30, conv_width=60, dense_depth=10, mean=CIFAR10_MEAN),
    "L": ConvNetConfig(conv_depth=50, conv_width=90, dense_depth=10, mean=CIFAR10_MEAN),
    "XL": ConvNetConfig(conv_depth=70, conv_width=120, dense_depth=15, mean=CIFAR10_MEAN),
    "digits": ConvNetConfig(
        image_shape=(8, 8, 1),
        conv_depth=0,
        pool=1,
        dense_depth=12,
        dense_width=256,
        dense_hidden=256,
    ),
    "mnist": ConvNetConfig(
        image_shape=(28, 28, 1),
        patch=2,
        conv_depth=4,
        conv_width=16,
        conv_hidden=16,
        pool=2,
        dense_depth=6,
        dense_hidden=512,
    ),
}
"""The published sizes for CIFAR-10 (S, M, L, XL), and two for smaller images."""


class LipschitzConvNet(nnx.Module):
    """A classifier whose features are Lipschitz with a proved constant (1 without `std`).

    Args:
        config: A `ConvNetConfig`, or the name of one of `SIZES`.
        rngs: Random number generators.

    Example:
        >>> import jax.numpy as jnp
        >>> model = LipschitzConvNet("digits", rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 8, 8, 1))).shape, model.feature_bound().kind
        ((2, 10), 'upper')
    """

    def __init__(self, config: ConvNetConfig | str, *, rngs: nnx.Rngs):
        if isinstance(config, str):
            _checks.one_of(tuple(SIZES), config=config)
            config = SIZES[config]
        if not isinstance(config, ConvNetConfig):
            raise ValueError(
                f"config is {config!r}; it must be a ConvNetConfig or one of {list(SIZES)}."
            )
        self.config = config
        self.conv = _trunk(config, rngs, dense=False)
        self.dense = _trunk(config, rngs, dense=True)
        places = channel_order(config)[: config.num_classes]
        self.head = _parts.head(config, config.features, rngs, places=places)

    def __call__(self, x: Array) -> Array:
        """Logits `float[..., classes]` of images `float[..., height, width, channels]` in [0, 1]."""
        return self.head(self.features(x))

    def features(self, x: Array) -> Array:
        """Features `float[..., features]` of images in [0, 1]."""
        config = self.config
        x = _parts.checked_images(x, config.image_shape)
        mean, std = (_per_channel(v, x) for v in (config.mean, config.std))
        x = (x - mean) / std
        if config.patch > 1:
            x = pooling.space_to_depth(x, config.patch)
        if self.conv is not None:
            x = self.conv(pooling.pad_channels(x, config.conv_width))
        if config.pool > 1:
            x = pooling.average_pool(x, config.pool)
        x = x.reshape(*x.shape[:-3], -1)
        if config.dense_width is not None:
            x = pooling.pad_channels(x, config.dense_width)
        return x if self.dense is None else self.dense(x)

    def feature_bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of `features`, input normalization included.

        This is the `lipschitz` of `lipjax.margin.certify` with `head=model.head.weights().kernel`.
        """
        total = Bound(self.config.input_lipschitz, "upper")
        for trunk in (self.conv, self.dense):
            if trunk is not None:
                total = total * trunk.bound()
        return total

    def class_vectors(self) -> Array:
        """`float[features, classes]`, the `head` of `lipjax.margin.certify`."""
        return self.head.weights().kernel

    def bound(self) -> Bound:
        """Bound on the l2 Lipschitz constant of the network, from images to all logits."""
        return self.feature_bound() * self.head.bound()


def num_parameters(config: ConvNetConfig | str) -> int:
    """Number of parameters, without building them.

    >>> round(num_parameters("S") / 1e6, 1)
    41.4
    """
    model = jax.eval_shape(lambda: LipschitzConvNet(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def channel_order(config: ConvNetConfig) -> np.ndarray:
    """Where the features stand if they are counted channel by channel, then row by row.

    >>> config = ConvNetConfig(image_shape=(2, 1, 3), conv_depth=0, pool=1)
    >>> channel_order(config).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    cells = config.patch * config.pool
    height, width = (side // cells for side in config.image_shape[:2])
    places = np.arange(config.flat_features).reshape(height, width, -1)
    appended = np.arange(config.flat_features, config.features)
    return np.concatenate([places.transpose(2, 0, 1).reshape(-1), appended])


_DENSE = {
    "aol": nn.AOLDense,
    "rescaled": nn.RescaledDense,
    "spectral": nn.SpectralDense,
    "bjorck": nn.BjorckDense,
    "cayley": nn.CayleyDense,
    "householder": nn.HouseholderDense,
    "qr": nn.QRDense,
    "cholesky": nn.CholeskyDense,
    "skew": nn.SkewDense,
    "block": nn.BjorckDense,
}


def _trunk(config, rngs, *, dense):
    depth = config.dense_depth if dense else config.conv_depth
    if depth == 0:
        return None
    inside, between = {}, None
    if config.activation_inside:
        inside = {} if config.activation is None else {"activation": config.activation}
    else:
        between = config.activation or "max_min"
    make = functools.partial(_dense_layer if dense else conv_layer, config, inside)
    return nn.Stack(make, depth, between=between, rngs=rngs)


def _dense_layer(config, inside, rngs):
    width, hidden, kind = config.features, config.dense_hidden, config.layer
    if kind in ("sll", "cpl"):
        return {"sll": nn.SLLDense, "cpl": nn.CPLDense}[kind](width, hidden, rngs=rngs, **inside)
    if kind == "sandwich":
        return nn.SandwichDense(width, width, rngs=rngs, **inside)
    if kind == "reflector":
        layer = nn.ReflectorDense(width, depth=config.dense_depth, rngs=rngs)
    else:
        layer = _DENSE[kind](width, width, rngs=rngs)
    return nn.Residual(layer, **inside) if config.form == "residual" else layer


def conv_layer(config: ConvNetConfig, inside: dict, rngs: nnx.Rngs, **options) -> nn.Constrained:
    """One convolution of the network; `inside` are options of layers with their own activation."""
    channels, size, kind = config.conv_width, config.kernel_size, config.layer
    height, width, _ = config.image_shape
    image = (height // config.patch, width // config.patch)
    if kind in ("sll", "cpl"):
        make = {"sll": nn.SLLConv, "cpl": nn.CPLConv}[kind]
        return make(channels, config.conv_hidden, size, rngs=rngs, **inside)
    if kind == "sandwich":
        return nn.SandwichConv(channels, channels, size, input_size=image, rngs=rngs, **inside)
    if kind == "reflector":
        depth = config.conv_depth
        layer = nn.ReflectorConv(channels, size, depth=depth, input_size=image, rngs=rngs)
    else:
        layer = _parts.contraction(
            kind, channels, channels, size, image=image, rngs=rngs, **options
        )
    return nn.Residual(layer, **inside) if config.form == "residual" else layer


def _per_channel(values, x):
    return jnp.broadcast_to(jnp.asarray(values, x.dtype), x.shape)
