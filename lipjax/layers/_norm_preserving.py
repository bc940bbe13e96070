"""Activations that preserve the norm of every input and gradient, almost everywhere.

They act on the last axis and are public in `lipjax.layers.activations`.
"""

import math

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax.typing import Array


def max_min(x: Array) -> Array:
    """Sorts channels i and i + c/2 of the last axis: all maxima, then all minima.

    An odd last channel passes unchanged. Preserves norms and gradients; 1-Lipschitz.
    Reference: Anil, Lucas, Grosse (2019), https://arxiv.org/abs/1811.05381.

    >>> import jax.numpy as jnp
    >>> max_min(jnp.array([1.0, 5.0, 3.0, 2.0])).tolist()
    [3.0, 5.0, 1.0, 2.0]
    """
    a, b, rest = _pairs(x)
    return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b), rest], axis=-1)


def adjacent_max_min(x: Array) -> Array:
    """Sorts channels 2 i and 2 i + 1 of the last axis, the maximum first; an odd last one passes.

    The same as `max_min` up to the order of the channels, which matters for weights trained with it and
    where a part of the channels is taken afterwards. Preserves norms and gradients; 1-Lipschitz.

    >>> import jax.numpy as jnp
    >>> adjacent_max_min(jnp.array([1.0, 5.0, 3.0, 2.0])).tolist()
    [5.0, 1.0, 3.0, 2.0]
    """
    x = _last_axis(x)
    half = x.shape[-1] // 2
    a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    sorted_pairs = jnp.stack([jnp.maximum(a, b), jnp.minimum(a, b)], axis=-1)
    sorted_pairs = sorted_pairs.reshape(*x.shape[:-1], 2 * half)
    return jnp.concatenate([sorted_pairs, x[..., 2 * half :]], axis=-1)


def group_sort(x: Array, *, group_size: int = 2) -> Array:
    """Sorts each group of neighbouring channels in ascending order; 1-Lipschitz.

    Args:
        x: `float[..., c]` with c a multiple of `group_size`.

    Reference: Anil, Lucas, Grosse (2019), https://arxiv.org/abs/1811.05381.

    >>> import jax.numpy as jnp
    >>> group_sort(jnp.array([3.0, 1.0, 2.0, 4.0])).tolist()
    [1.0, 3.0, 2.0, 4.0]
    """
    x = _last_axis(x)
    _checks.integer(1, group_size=group_size)
    if x.shape[-1] % group_size:
        raise ValueError(
            f"group_size is {group_size}; it must divide the {x.shape[-1]} channels of x."
        )
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    return jnp.sort(groups, axis=-1).reshape(x.shape)


def full_sort(x: Array) -> Array:
    """Sorts all channels in ascending order; preserves norms and gradients; 1-Lipschitz.

    Reference: Anil, Lucas, Grosse (2019), https://arxiv.org/abs/1811.05381.

    >>> import jax.numpy as jnp
    >>> full_sort(jnp.array([3.0, 1.0, 2.0, 4.0])).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    x = _last_axis(x)
    return jnp.sort(x, axis=-1)


def beta_abs(x: Array, *, beta: float = 0.5) -> Array:
    """Absolute value of the first share `beta` of the channels (rounded down), the rest unchanged.

    Preserves norms and, but for zeros, gradients; 1-Lipschitz. The beta-Abs of LipNeXt; with 0.5 it
    is known as HalfAbs and registered as "half_abs".

    Args:
        x: `float[..., c]`.
        beta: In [0, 1].

    >>> import jax.numpy as jnp
    >>> beta_abs(jnp.array([-1.0, 2.0, -3.0, -4.0])).tolist()
    [1.0, 2.0, -3.0, -4.0]
    """
    x = _last_axis(x)
    _checks.within(0.0, 1.0, beta=beta)
    count = math.floor(beta * x.shape[-1] + 1e-6)
    return jnp.concatenate([jnp.abs(x[..., :count]), x[..., count:]], axis=-1)


def householder(x: Array, angles: Array) -> Array:
    """Reflects each pair of channels i and i + c/2 that lies on one side of a line.

    With `v = (sin(angle / 2), -cos(angle / 2))` a pair z becomes `z - 2 max(0, <v, z>) v`: itself, or
    its mirror image `(z1 cos + z2 sin, z1 sin - z2 cos)` of `angle` where `<v, z>` is positive. An
    odd last channel passes unchanged. At `pi / 2`, the published start, pairs are sorted with the
    smaller entry first (`max_min` with its halves exchanged); at `5 pi / 2` this is `max_min`.

    Args:
        x: `float[..., c]`.
        angles: `float[c // 2]`, in radians, learnt.

    Returns:
        `float[..., c]`.

    Guarantee: preserves norms and, almost everywhere, gradients; continuous, hence 1-Lipschitz; up
    to a few roundings of the norm of each pair. On the line itself, and at 0, the derivative is that
    of the identity. NaN in, NaN out.

    Raises:
        ValueError: for angles of another shape.

    Reference: Singla, Singla, Feizi (2022), https://arxiv.org/abs/2108.04062; the side that is
    reflected is that of their code (the other one is `angles + 2 pi`).

    >>> import jax.numpy as jnp
    >>> householder(jnp.array([5.0, 1.0, 3.0, 2.0]), jnp.full(2, jnp.pi / 2)).round(4).tolist()
    [3.0, 1.0, 5.0, 2.0]
    """
    x = _last_axis(x)
    a, b, rest = _pairs(x)
    angles = _checks.array(angles=angles)
    _check_angles(angles, (a.shape[-1],), x)
    sin, cos = (jnp.broadcast_to(f(angles / 2), a.shape) for f in (jnp.sin, jnp.cos))
    twice = 2 * jax.nn.relu(a * sin - b * cos)
    return jnp.concatenate([a - twice * sin, b + twice * cos, rest], axis=-1)


def householder_order_2(x: Array, angles: Array) -> Array:
    """Reflects or turns each pair of channels i and i + c/2 by the sector it lies in.

    In each plane, with t0, t1, t2 the three angles, counted from the ray at `t0 / 2`:

    - from 0 to `t1 / 2` nothing changes;
    - from there to `(t1 + t2) / 2` the pair is mirrored, `phi -> t0 + t1 - phi`;
    - from there to `pi + t2 / 2` it is turned, `phi -> phi - t2`;
    - in the rest of the circle it is mirrored, `phi -> t0 - phi`.

    Neighbouring maps agree on the ray between them. The last sector is all that the others leave:
    asked for by its own bounds, it misses the float32 angles that round to a full circle, and pairs
    there become 0.

    Args:
        x: `float[..., c]`; an odd last channel passes unchanged.
        angles: `float[3, c // 2]`, in radians, learnt, clipped to [0, 2 pi]. The published start is
            uniform in [0, pi].

    Returns:
        `float[..., c]`.

    Guarantee: preserves norms and, almost everywhere, gradients; continuous, hence 1-Lipschitz; up
    to a few roundings of the norm of each pair. Choosing the sector carries no gradient, so that of
    a pair of zeros is finite. NaN in, NaN out.

    Raises:
        ValueError: for angles of another shape.

    Reference: Singla, Singla, Feizi (2022), https://arxiv.org/abs/2108.04062, by their code.

    >>> import jax.numpy as jnp
    >>> angles = jnp.array([[0.0], [jnp.pi], [0.0]])
    >>> householder_order_2(jnp.array([-3.0, 4.0]), angles).round(4).tolist()
    [-3.0, 4.0]
    """
    x = _last_axis(x)
    a, b, rest = _pairs(x)
    angles = _checks.array(angles=angles)
    _check_angles(angles, (3, a.shape[-1]), x)
    circle = 2 * math.pi
    t0, t1, t2 = jnp.clip(angles, 0, circle)
    phi = jnp.arctan2(jax.lax.stop_gradient(b), jax.lax.stop_gradient(a))

    def wide(row):
        return jnp.broadcast_to(row, a.shape)

    phi = jnp.mod(phi - wide(t0 / 2), circle)
    bounds = (t1 / 2, (t1 + t2) / 2, math.pi + t2 / 2)
    sectors = [phi < wide(bound) for bound in bounds]
    turns = [jnp.zeros_like(t0), t0 + t1, t2, t0]
    cos, sin = (
        jnp.select(sectors, [wide(f(t)) for t in turns[:3]], wide(f(turns[3])))
        for f in (jnp.cos, jnp.sin)
    )
    side = jnp.where(sectors[0] | (sectors[2] & ~sectors[1]), -1, 1).astype(x.dtype)
    return jnp.concatenate([a * cos + b * sin, side * (a * sin - b * cos), rest], axis=-1)


def _last_axis(x):
    """x as an array that has channels."""
    x = _checks.array(x=x)
    _checks.at_least_rank(1, "[..., channels]", x=x)
    return x


def _pairs(x):
    """Channels i, channels i + c/2, and an odd last one."""
    x = _last_axis(x)
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]


def _check_angles(angles, shape, x):
    if jnp.shape(angles) != shape:
        raise ValueError(
            f"angles has shape {jnp.shape(angles)}; it must be {shape} for the {x.shape[-1]} "
            "channels of x."
        )
