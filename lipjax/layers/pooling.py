"""Changes of shape that never expand: each is 1-Lipschitz in l2, most are isometries or projections.

All take `float[..., height, width, channels]`.
"""

import math

import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import safe_norm
from lipjax.typing import Array

_IMAGE = "[..., height, width, channels]"


def average_pool(x: Array, window: int) -> Array:
    """Average over windows times `window`: the mean filter scaled to norm exactly 1.

    The average over `window^2` points has norm `1 / window`; a network would lose that factor at
    every pooling.

    Args:
        x: `float[..., h, w, c]`, with h and w multiples of `window`.
        window: Side of the windows, which do not overlap.

    Returns:
        `float[..., h / window, w / window, c]`.

    >>> import jax.numpy as jnp
    >>> average_pool(jnp.ones((4, 4, 1)), 2)[0, 0, 0].item()
    2.0
    """
    return _blocks(x, window).sum((-4, -2)) / window


def global_average(x: Array) -> Array:
    """Mean over all positions times the square root of their number: norm exactly 1.

    Args:
        x: `float[..., h, w, c]`.

    Returns:
        `float[..., c]`.

    >>> import jax.numpy as jnp
    >>> global_average(jnp.ones((2, 2, 1))).item()
    2.0
    """
    x = _floating(x)
    return x.sum((-3, -2)) / math.sqrt(x.shape[-3] * x.shape[-2])


def center(x: Array) -> Array:
    """Subtracts from each channel its mean over all positions; a projection.

    Acts on each example alone, in training as in evaluation, so nothing has to be remembered.

    >>> import jax.numpy as jnp
    >>> center(jnp.array([[[1.0], [3.0]]])).ravel().tolist()
    [-1.0, 1.0]
    """
    x = _floating(x)
    return x - x.mean((-3, -2), keepdims=True)


def l2_pool(x: Array, window: int) -> Array:
    """Euclidean norm over windows, with derivative 0 where a window is 0; 1-Lipschitz.

    >>> import jax.numpy as jnp
    >>> l2_pool(jnp.ones((2, 2, 1)), 2).item()
    2.0
    """
    return safe_norm(_blocks(_floating(x), window), axis=(-4, -2))


def max_pool(x: Array, window: int) -> Array:
    """Largest entry over windows that do not overlap; 1-Lipschitz.

    Overlapping windows would count one entry several times and expand by up to the square root of
    that number, so there is no stride to choose.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.array([[[1.0], [4.0]], [[2.0], [3.0]]]), 2).item()
    4.0
    """
    return _blocks(x, window).max((-4, -2))


def space_to_depth(x: Array, window: int) -> Array:
    """Moves each window into the channels, ordered (row, column, channel); an isometry.

    >>> import jax.numpy as jnp
    >>> space_to_depth(jnp.ones((4, 4, 3)), 2).shape
    (2, 2, 12)
    """
    x = _image(x)
    blocks = _blocks(x, window)
    moved = jnp.moveaxis(blocks, -4, -3)
    moved = moved.reshape(*moved.shape[:-3], window, window * x.shape[-1])
    return moved.reshape(*moved.shape[:-2], window**2 * x.shape[-1])


def depth_to_space(x: Array, window: int) -> Array:
    """Moves the channels into windows: the inverse of `space_to_depth`; an isometry.

    Args:
        x: `float[..., h, w, c]`, with c a multiple of `window^2`, ordered (row, column, channel).
        window: Side of the windows.

    Returns:
        `float[..., h * window, w * window, c / window^2]`.

    >>> import jax.numpy as jnp
    >>> depth_to_space(jnp.ones((2, 2, 12)), 2).shape
    (4, 4, 3)
    """
    _checks.integer(1, window=window)
    x = _image(x)
    if x.shape[-1] % window**2:
        raise ValueError(
            f"window is {window}; its square must divide the {x.shape[-1]} channels of x."
        )
    height, width, channels = x.shape[-3], x.shape[-2], x.shape[-1] // window**2
    # [..., h, row, w, (column, channel)]; then one axis at a time, as in `_blocks`.
    rows = jnp.moveaxis(x.reshape(*x.shape[:-1], window, window * channels), -2, -3)
    rows = rows.reshape(*x.shape[:-3], height * window, width, window * channels)
    columns = rows.reshape(*rows.shape[:-1], window, channels)
    return columns.reshape(*x.shape[:-3], height * window, width * window, channels)


def upsample(x: Array, factor: int) -> Array:
    """Repeats each position over a `factor x factor` window, divided by `factor`; an isometry.

    The transpose of `average_pool`, which undoes it. Repeating alone has norm `factor`.

    Args:
        x: `float[..., h, w, c]`.
        factor: At least 1.

    Returns:
        `float[..., h * factor, w * factor, c]`.

    >>> import jax.numpy as jnp
    >>> upsample(jnp.ones((1, 1, 1)), 2).ravel().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    _checks.integer(1, factor=factor)
    x = _image(x)
    return jnp.repeat(jnp.repeat(x, factor, axis=-3), factor, axis=-2) / factor


def repeat_channels(x: Array, repeats: int) -> Array:
    """All channels, `repeats` times one after the other, divided by its square root; an isometry.

    Widens without zeros, unlike `pad_channels`. Works on `float[..., c]`.

    >>> import jax.numpy as jnp
    >>> repeat_channels(jnp.array([2.0, 4.0]), 4).tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    """
    _checks.integer(1, repeats=repeats)
    x = _channels(x)
    return jnp.concatenate([x] * repeats, axis=-1) / math.sqrt(repeats)


def pad_channels(x: Array, channels: int) -> Array:
    """Appends channels of zeros up to `channels`; an isometry. Works on `float[..., c]`.

    >>> import jax.numpy as jnp
    >>> pad_channels(jnp.ones(2), 3).tolist()
    [1.0, 1.0, 0.0]
    """
    _checks.integer(1, channels=channels)
    x = _channels(x)
    if channels < x.shape[-1]:
        raise ValueError(
            f"channels is {channels}; x already has {x.shape[-1]} (use first_channels to drop some)."
        )
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - x.shape[-1])])


def first_channels(x: Array, channels: int) -> Array:
    """Keeps the first `channels` channels; a projection. Works on `float[..., c]`.

    >>> import jax.numpy as jnp
    >>> first_channels(jnp.array([1.0, 2.0, 3.0]), 2).tolist()
    [1.0, 2.0]
    """
    _checks.integer(1, channels=channels)
    x = _channels(x)
    if channels > x.shape[-1]:
        raise ValueError(f"channels is {channels}; x has only {x.shape[-1]}.")
    return x[..., :channels]


def _image(x):
    x = _checks.array(x=x)
    _checks.at_least_rank(3, _IMAGE, x=x)
    return x


def _floating(x):
    x = _image(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def _channels(x):
    x = _checks.array(x=x)
    _checks.at_least_rank(1, "[..., channels]", x=x)
    return x


def _blocks(x, window):
    """`[..., h / w, w, w' / w, w, c]`."""
    _checks.integer(1, window=window)
    x = _image(x)
    height, width = x.shape[-3:-1]
    if height % window or width % window:
        raise ValueError(
            f"window is {window}; it must divide the height and width of x, {height} x {width}."
        )
    # One axis at a time: a reshape that splits two is refused for sharded batches.
    x = x.reshape(*x.shape[:-3], height // window, window, width, x.shape[-1])
    return x.reshape(*x.shape[:-2], width // window, window, x.shape[-1])
