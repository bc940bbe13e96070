"""Changes of shape that never expand: each is 1-Lipschitz in l2, most are isometries or projections.

All take `float[..., height, width, channels]`.
"""

import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import safe_norm
from lipjax.typing import Array


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


def l2_pool(x: Array, window: int) -> Array:
    """Euclidean norm over windows, with derivative 0 where a window is 0; 1-Lipschitz."""
    return safe_norm(_blocks(x, window), axis=(-4, -2))


def max_pool(x: Array, window: int) -> Array:
    """Largest entry over windows that do not overlap; 1-Lipschitz.

    Overlapping windows would count one entry several times and expand by up to the square root of
    that number, so there is no stride to choose.
    """
    return _blocks(x, window).max((-4, -2))


def space_to_depth(x: Array, window: int) -> Array:
    """Moves each window into the channels, ordered (row, column, channel); an isometry.

    >>> import jax.numpy as jnp
    >>> space_to_depth(jnp.ones((4, 4, 3)), 2).shape
    (2, 2, 12)
    """
    blocks = _blocks(x, window)
    moved = jnp.moveaxis(blocks, -4, -3)
    moved = moved.reshape(*moved.shape[:-3], window, window * x.shape[-1])
    return moved.reshape(*moved.shape[:-2], window**2 * x.shape[-1])


def pad_channels(x: Array, channels: int) -> Array:
    """Appends channels of zeros up to `channels`; an isometry. Works on `float[..., c]`."""
    if channels < x.shape[-1]:
        raise ValueError(
            f"channels is {channels}; x already has {x.shape[-1]} (use first_channels to drop some)."
        )
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - x.shape[-1])])


def first_channels(x: Array, channels: int) -> Array:
    """Keeps the first `channels` channels; a projection. Works on `float[..., c]`."""
    _checks.integer(1, channels=channels)
    if channels > x.shape[-1]:
        raise ValueError(f"channels is {channels}; x has only {x.shape[-1]}.")
    return x[..., :channels]


def _blocks(x, window):
    """`[..., h / w, w, w' / w, w, c]`."""
    _checks.integer(1, window=window)
    _checks.at_least_rank(3, "[..., height, width, channels]", x=x)
    height, width = x.shape[-3:-1]
    if height % window or width % window:
        raise ValueError(
            f"window is {window}; it must divide the height and width of x, {height} x {width}."
        )
    # One axis at a time: a reshape that splits two is refused for sharded batches.
    x = x.reshape(*x.shape[:-3], height // window, window, width, x.shape[-1])
    return x.reshape(*x.shape[:-2], width // window, window, x.shape[-1])
