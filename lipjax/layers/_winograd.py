r"""Convolutions of 3 x 3 with a quarter of the multiplications, by tiles.

Of a product of two polynomials it is enough to multiply their values at as many points as it has
coefficients. For the 4 neighbouring outputs y of a filter k of 3 taps that reads 6 inputs x, with the 6
points $0, \pm 5/8, \pm 3/2, \infty$,

$$y = A^T \left[ (G k) \odot (B^T x) \right],$$

6 products in place of 12, and in two dimensions 36 in place of 144 for a tile of 4 x 4 outputs: for all
tiles and channels, 36 products of matrices. The transforms A, B and G are sums of slices, and so are
their transposes. That makes a convolution and both of its gradients 1.2 to 2.9 times as fast on CPUs as
XLA's; there, they are what is differentiated. They take 36/16 of the memory of x, which the gradient for
the kernel keeps.

Rounding errors are two to four times those of a plain convolution, with the usual points 0, 1, -1, 2, -2
four to eight times; these were chosen among multiples of 1/16. They are relative to the largest values
of the tile, as far as which NaN and infinity reach too, and values from 1e37 on overflow.

References: Winograd (1980), Arithmetic Complexity of Computations; Lavin, Gray (2016),
https://arxiv.org/abs/1509.09308.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from lipjax.typing import Array

WINDOW = (3, 3)
TILE = 4
"""Outputs of a tile on each axis."""
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
"""Where polynomials are evaluated; the last point is infinity."""
LEAST_CHANNELS, LEAST_TILES = 24, 16
"""From which on this is faster: else the products are too small for what the transforms cost."""


def pays(x: Array, kernel: Array) -> bool:
    """Whether convolving `float[b, h, w, c]` with the kernel, or its adjoint, is faster this way.

    An x on a mesh with explicit axes is left to JAX, which would ask where each product belongs, and so
    is a batch of unknown size.
    """
    *window, c_in, c_out = kernel.shape
    if tuple(window) != WINDOW or min(c_in, c_out) < LEAST_CHANNELS:
        return False
    if AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
        return False
    if not all(isinstance(n, int) for n in x.shape):  # the symbol of an exported program
        return False
    count, *size = x.shape[:-1]
    tiles = math.prod(-(-n // TILE) for n in size)
    return count * tiles >= LEAST_TILES and tiles * TILE**2 <= 2 * math.prod(size)


@functools.partial(jax.jit, static_argnames="padding")  # traced once for each shape, not each layer
def convolved(x: Array, kernel: Array, padding: str) -> Array:
    """The convolution of `float[b, h, w, c_in]` with `float[3, 3, c_in, c_out]` and stride 1."""
    height, width = x.shape[1:3]
    x = lax.optimization_barrier(x)  # else XLA computes it anew for each slice that it goes into
    tiles = _combined(_INPUT, _windows(_padded(x, padding), 1), 2)
    tiles = _combined(_INPUT, _windows(tiles, 3), 4)
    filters = _combined(_FILTER, _combined(_FILTER, kernel, 0), 1)
    values = _products(tiles, filters)
    y = _combined(_OUTPUT, _combined(_OUTPUT, values, 1, 3), 0, 4)
    b, rows, _, columns, _, c = y.shape
    return y.reshape(b, rows * TILE, columns * TILE, c)[:, :height, :width]


def adjoint(y: Array, kernel: Array, padding: str) -> Array:
    """Its adjoint, of `float[b, h, w, c_out]`: the convolution with the kernel turned around."""
    return convolved(y, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), padding)


def _products(tiles, filters):
    """`float[6, 6, b, rows, columns, c_out]`: for each pair of points, one product of two matrices."""
    *channels, pairs = *filters.shape[2:], len(filters) ** 2
    matrices = tiles.reshape(pairs, -1, channels[0]) @ filters.reshape(pairs, *channels)
    return matrices.reshape(*tiles.shape[:-1], channels[1])


def _padded(x, padding):
    """`float[b, rows + 1, 4, columns + 1, 4, c]`: all tiles, and one more on each axis."""
    sides = [(1, 1), (1, 1)]
    if padding == "circular":
        x, sides = jnp.pad(x, [(0, 0), *sides, (0, 0)], mode="wrap"), [(0, 0), (0, 0)]
    inside = [n + before + after for n, (before, after) in zip(x.shape[1:3], sides)]
    counts = [-(-(n - 2) // TILE) + 1 for n in inside]
    rest = [count * TILE - n for count, n in zip(counts, inside)]
    sides = [(before, after + more) for (before, after), more in zip(sides, rest)]
    x = jnp.pad(x, [(0, 0), *sides, (0, 0)])
    return x.reshape(x.shape[0], counts[0], TILE, counts[1], TILE, x.shape[-1])


def _windows(x, axis):
    """Each tile of the axis, its positions on the next one, with the first two of the tile after it."""
    tiles, following = (_sliced(x, axis, *ends) for ends in ((0, -1), (1, None)))
    return jnp.concatenate([tiles, _sliced(following, axis + 1, 0, 2)], axis + 1)


def _sliced(x, axis, start, stop):
    return x[(slice(None),) * axis + (slice(start, stop),)]


def _combined(matrix, x, axis, to=0):
    """The product of a matrix with an axis of x, as sums of slices; the result is the axis `to`."""
    # Of `split` the transpose is a concatenation, of single slices it would be a sum of padded ones.
    parts = [jnp.squeeze(part, axis) for part in jnp.split(x, x.shape[axis], axis)]
    rows = [sum(float(c) * part for c, part in zip(row, parts) if c) for row in matrix]
    return jnp.stack(rows, to)


def _matrices(points):
    """$B^T$, G and $A^T$ of the method by Cook and Toom, for these points and infinity."""
    points, taps = np.array(points), WINDOW[0]
    total = len(points) + 1
    inputs, filters = np.zeros((total, total)), np.zeros((total, taps))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        inputs[i, :-1] = np.poly(others)[::-1]
        filters[i] = point ** np.arange(taps) / np.prod(point - others)
    inputs[-1], filters[-1, -1] = np.poly(points)[::-1], 1
    outputs = np.vander(points, TILE, increasing=True).T
    return inputs, filters, np.column_stack([outputs, np.eye(TILE)[-1]])


_INPUT, _FILTER, _OUTPUT = _matrices(POINTS)
