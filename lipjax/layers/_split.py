r"""Gradients of convolutions for their kernels, with the taps shared between input and output.

For the gradient of a kernel XLA's CPU backend copies windows as large as the image. It is a sum over all
points, $\sum_t x[t + i + j]^T g[t] = \sum_t x[t + j]^T g[t - i]$, here with i the taps of the first axes
and j those of the last: copies of x and of the output's gradient g, shifted by few taps each, then one
product for each image. The functions below are the convolution and its adjoint in an order of which that
is the transpose; on CPUs, they are what is differentiated for the kernel. It takes half of the time or
less, and memory for the copies: as many of x and of g as the window has taps on an axis.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from lipjax.layers._narrow import _shifted
from lipjax.typing import Array

LEAST = 24
"""Channels on both sides, from which on this is faster: with few, XLA's windows are small."""


def pays(x: Array, kernel: Array) -> bool:
    """Whether the gradient for a kernel of this shape is faster in this order.

    An x on a mesh with explicit axes is left to JAX, which would ask where each product belongs.
    """
    explicit = AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
    return math.prod(kernel.shape[:-2]) > 1 and min(kernel.shape[-2:]) >= LEAST and not explicit


def convolved(x: Array, kernel: Array, padding: str) -> Array:
    """The convolution of `float[b, *spatial, c_in]` with stride 1."""
    first, last = _shifts(kernel)
    copies = [_shifted(x, [-s for s in shift], padding) for shift in last]
    products = _times(jnp.concatenate(copies, axis=-1), _matrix(kernel))
    parts = jnp.split(products, len(first), axis=-1)
    return sum(_shifted(p, [-s for s in shift], padding) for p, shift in zip(parts, first))


def adjoint(y: Array, kernel: Array, padding: str) -> Array:
    """Its adjoint, of `float[b, *spatial, c_out]`."""
    first, last = _shifts(kernel)
    copies = [_shifted(y, shift, padding) for shift in first]
    products = _times(jnp.concatenate(copies, axis=-1), _matrix(kernel).T)
    parts = jnp.split(products, len(last), axis=-1)
    return sum(_shifted(p, shift, padding) for p, shift in zip(parts, last))


def _times(x, matrix):
    """`x @ matrix`, a product for each image, or for several small ones, so that no gradient is larger.

    In the gradient the sum of these is faster than one long product.
    """
    count, points = x.shape[0], math.prod(x.shape[1:-1])
    together = 1
    if isinstance(count, int) and count:  # and not the symbol of an exported program
        wanted = -(-max(matrix.shape) // points)
        together = next(n for n in range(min(wanted, count), count + 1) if count % n == 0)
    images = x.reshape(count // together, together * points, x.shape[-1])
    each = jnp.broadcast_to(matrix, (images.shape[0], *matrix.shape))
    return (images @ each).reshape(*x.shape[:-1], matrix.shape[-1])


def _matrix(kernel):
    """`float[taps of the last axis * c_in, taps of the first axes * c_out]`."""
    *_, taps, c_in, c_out = kernel.shape
    parts = kernel.reshape(-1, taps, c_in, c_out)
    return jnp.moveaxis(parts, 0, 2).reshape(taps * c_in, -1)


def _shifts(kernel):
    """How far the taps of the first axes, and those of the last, are from the center of the window."""
    *first, last = kernel.shape[:-2]
    center = [(k - 1) // 2 for k in (*first, last)]
    ahead = [[*(i - c for i, c in zip(tap, center)), 0] for tap in np.ndindex(*first)]
    return ahead, [[0] * len(first) + [j - center[-1]] for j in range(last)]
