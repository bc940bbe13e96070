"""Initial kernels of the published layers, for shapes `[*window, inputs, outputs]`."""

import math

import jax
import jax.numpy as jnp

from lipjax import _checks


def window(kernel_size, dims: int) -> tuple[int, ...]:
    """The window of a convolution, from one size or one per axis."""
    _checks.integer(1, dims=dims)
    _checks.one_of((1, 2, 3), dims=dims)
    return _checks.per_axis(dims, kernel_size=kernel_size)


INITS = ("default", "published")
"""What `init` may be, where the published start is not the one of this library."""


def xavier_normal(key, shape):
    """Normal with variance `2 / (fan_in + fan_out)`, each fan counting the taps."""
    _checks.one_key(key=key)
    taps = math.prod(shape[:-2])
    return jax.random.normal(key, shape) * math.sqrt(2 / (taps * (shape[-2] + shape[-1])))


def uniform_kernel(key, shape):
    """Uniform in `+-1 / sqrt(fan_in)`."""
    _checks.one_key(key=key)
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def low_rank_kernel(key, shape):
    """Uniform kernels of an eighth as many outputs as inputs, mixed by a random matrix."""
    _checks.one_key(key=key)
    uniform_key, mix_key = jax.random.split(key)
    rank = max(1, shape[-2] // 8)
    kernel = uniform_kernel(uniform_key, (*shape[:-1], rank))
    mix = jax.random.normal(mix_key, (rank, shape[-1])) / math.sqrt(rank)
    return (kernel.reshape(-1, rank) @ mix).reshape(shape)


def uniform_bias(key, shape):
    """Uniform in `+-1 / sqrt(fan_in)`, one per output."""
    _checks.one_key(key=key)
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, (shape[-1],), minval=-limit, maxval=limit)


def identity_or_orthogonal(key, shape):
    """The identity (at the central tap) for equal widths, else random orthonormal columns or rows.

    Both start a rescaled layer as an isometry, where random kernels would start it as a
    contraction and deep networks would lose the signal.
    """
    _checks.one_key(key=key)
    *taps, rows, cols = shape
    if rows == cols:
        matrix = jnp.eye(rows)
    else:
        matrix = jax.nn.initializers.orthogonal()(key, (rows, cols))
    centre = tuple((k - 1) // 2 for k in taps)
    return jnp.zeros(shape).at[centre].set(matrix)
