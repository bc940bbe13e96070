"""What the networks for images share: the input, and convolutions chosen by name."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _checks, nn
from lipjax.layers.head import Head
from lipjax.typing import Array, Bound

CONTRACTIONS = ("aol", "rescaled", "spectral", "skew", "block", "cayley")
"""Convolutions that are contractions, between any numbers of channels."""

_CONV = {
    "aol": nn.AOLConv,
    "rescaled": nn.RescaledConv,
    "spectral": nn.SpectralConv,
    "skew": nn.SOCConv,
    "block": nn.BCOPConv,
}


def contraction(
    kind: str, channels_in: int, channels_out: int, kernel_size: int, *, image, rngs, **options
):
    """A convolution of `CONTRACTIONS` on images of size `image`, which only Cayley's needs."""
    channels = (channels_in, channels_out)
    if kind == "cayley":
        return nn.CayleyConv(*channels, kernel_size, input_size=image, rngs=rngs, **options)
    return _CONV[kind](*channels, kernel_size, rngs=rngs, **options)


def check_convolution(kind: str, channels: int, *kernel_sizes: int) -> None:
    """An error for windows or channels that the convolution of that name does not have."""
    for size in kernel_sizes:
        if kind == "skew" and size % 2 == 0:
            raise ValueError(
                f"kernel_size is {size} and layer is 'skew'; its window must be odd, to have a "
                "centre to be skew about."
            )
        if kind == "block" and size > 1 and channels < 2:
            raise ValueError(
                f"layer is 'block' and its convolutions have {channels} channel; its projections need "
                "at least 2 (conv_width or width), or kernel_size=1."
            )


class Projection(nnx.Module):
    """A head without parameters: the features at `places` are the logits.

    Args:
        features: How many features there are.
        places: One for each class, all different.
    """

    def __init__(self, features: int, places: Iterable[int]):
        _checks.integer(1, features=features)
        self.features = features
        self.places = tuple(int(place) for place in places)
        if len(set(self.places)) < len(self.places) or not set(self.places) <= set(range(features)):
            raise ValueError(
                f"places is {self.places}; they must be different and lie in [0, {features - 1}]."
            )

    def __call__(self, x: Array) -> Array:
        """Logits `float[..., classes]` of `float[..., features]`."""
        return x[..., np.array(self.places)]

    def weights(self) -> Head:
        """The class vectors, columns of the identity."""
        kernel = np.zeros((self.features, len(self.places)), np.float32)
        kernel[np.array(self.places), np.arange(len(self.places))] = 1
        return Head(jnp.asarray(kernel), jnp.zeros(len(self.places), jnp.float32))

    def bound(self) -> Bound:
        """1, the norm of a projection."""
        return Bound(1.0, "exact")


HEADS = {"normalized": nn.NormalizedHead, "orthogonal": nn.CayleyDense, "projection": Projection}
"""What reads the classes off: class vectors of norm 1, orthonormal ones, or some of the features."""


def head(config, features: int, rngs, *, places: Iterable[int] | None = None):
    """The head that a config names; a projection takes the first features if there are no places."""
    if config.head == "projection":
        return Projection(features, range(config.num_classes) if places is None else places)
    return HEADS[config.head](features, config.num_classes, rngs=rngs)


def check_head(config, features: int) -> None:
    """An error for an unknown head, or more classes than there are features, where that matters."""
    _checks.one_of(tuple(HEADS), head=config.head)
    if config.head != "normalized" and config.num_classes > features:
        raise ValueError(
            f"head is {config.head!r} and num_classes is {config.num_classes}; there must be at most as "
            f"many classes as features, {features}. Use 'normalized'."
        )


def check_input(config) -> tuple[int, int]:
    """Checks `image_shape`, `mean` and `pad` of a config, makes tuples of them.

    Returns the height and width with the zeros around.
    """
    for name in ("image_shape", "mean"):  # lists and single numbers are welcome
        value = getattr(config, name)
        value = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,)
        object.__setattr__(config, name, value)
    _checks.integer(0, pad=config.pad)
    if len(config.image_shape) != 3:
        raise ValueError(
            f"image_shape is {config.image_shape}; it must be (height, width, channels)."
        )
    for side in config.image_shape:
        _checks.integer(1, image_shape=side)
    height, width, channels = config.image_shape
    if len(config.mean) not in (1, channels):
        raise ValueError(f"mean is {config.mean}; it must have 1 or {channels} entries.")
    _checks.within(-1e6, 1e6, mean=config.mean)
    return height + 2 * config.pad, width + 2 * config.pad


def entered(x, config):
    """Images minus the mean, with `pad` pixels of zeros around: both 1-Lipschitz."""
    x = checked_images(x, config.image_shape)
    x = x - jnp.broadcast_to(jnp.asarray(config.mean, x.dtype), x.shape)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(config.pad,) * 2] * 2 + [(0, 0)])


def checked_images(x, image_shape) -> Array:
    """x as JAX holds it (float64 NumPy images become float32 where it runs in 32 bits).

    Raises:
        ValueError: unless x is a floating batch, or one, of such images.
    """
    x = _checks.array(x=x)
    if x.shape[-3:] != image_shape or x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype}; it must be float32 with shape "
            f"[..., {', '.join(map(str, image_shape))}] and values in [0, 1]."
        )
    _checks.nonempty(x=x)
    return x
