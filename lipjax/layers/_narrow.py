r"""Convolutions with few output channels, and their adjoints, as one matrix product each.

XLA's CPU backend copies a window of the input for every output point, in the forward pass and in both
gradients. With few outputs, as in the layers SLL and CPL of 45 channels and 5 hidden ones, the same
sums cost less in another order: multiply every pixel with all taps at once, then shift and add,

$$y[t] = \sum_i (x K_i)[t + i - c],$$

and for the adjoint shift first and multiply once. On CPUs, a convolution under differentiation is
computed in this order wherever it is the faster one. Otherwise it is the plain convolution, which
`lipjax.spectral.network_bound` can read.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax.typing import Array


def is_narrow(kernel: Array) -> bool:
    """Whether the products with all taps have no more channels than the input."""
    *window, c_in, c_out = kernel.shape
    return 1 < math.prod(window) and math.prod(window) * c_out <= c_in


def scattered(x: Array, kernel: Array, padding: str) -> Array:
    """The convolution of `float[b, *spatial, c_in]` with stride 1: a product, then shifted sums."""
    shifts = _shifts(kernel)
    # Of `split` the transpose is a concatenation: so the gradient for the kernel is `gathered`.
    products = jnp.split(_times(x, _matrix(kernel)), len(shifts), axis=-1)
    return sum(_shifted(p, [-s for s in shift], padding) for p, shift in zip(products, shifts))


def gathered(y: Array, kernel: Array, padding: str) -> Array:
    """Its adjoint, of `float[b, *spatial, c_out]`: shifted copies, then a product."""
    copies = [_shifted(y, shift, padding) for shift in _shifts(kernel)]
    return _times(jnp.concatenate(copies, axis=-1), _matrix(kernel).T)


def _times(x, matrix):
    """`x @ matrix` as a product of two matrices, whose gradients XLA's CPU backend does best."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _matrix(kernel):
    """`float[c_in, taps * c_out]`."""
    *_, c_in, c_out = kernel.shape
    return jnp.moveaxis(kernel.reshape(-1, c_in, c_out), 0, 1).reshape(c_in, -1)


def _shifts(kernel):
    """How far each tap of the window is from its center."""
    window = kernel.shape[:-2]
    return [[i - (k - 1) // 2 for i, k in zip(tap, window)] for tap in np.ndindex(*window)]


def _shifted(x, shift, padding):
    """`x[t - shift]` over the spatial axes 1, 2, ..."""
    if padding == "circular":
        return jnp.roll(x, shift, tuple(range(1, 1 + len(shift))))
    sides = [(0, 0, 0), *((s, -s, 0) for s in shift), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), sides)
