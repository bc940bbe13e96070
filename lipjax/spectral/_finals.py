"""Upper bounds on the largest eigenvalue of the last iterate, and a vector near its top.

Each bound takes a Hermitian matrix, packed or real, and that vector; each has its rounding inside,
unless `rounded` is False.
"""

import math

import jax.numpy as jnp
from jax import lax

from lipjax._numerics import (
    gamma,
    power_of_two,
    round_up,
    safe_abs,
    safe_norm,
    safe_rsqrt,
    safe_sqrt,
    unit_roundoff,
)
from lipjax.spectral._products import apply, trace, transpose


def _frobenius_bound(product, packed=None, v=None, rounded=True):
    del packed, v
    rounding = rounded * gamma(product.shape[-1] + 8, product.dtype)
    columns = lax.optimization_barrier(jnp.square(product).sum(-2))  # short sums, never a long one
    return round_up(safe_sqrt(round_up(columns.sum(-1) * (1 + 2 * rounding), 2)), 1)


def _wolkowicz_styan_bound(product, packed=None, v=None, rounded=True):
    """From the trace and the Frobenius norm: exact for one spike above a flat rest."""
    del packed, v
    dim = product.shape[-1]
    norm = _frobenius_bound(product, rounded=rounded)
    slack = rounded * gamma(dim + 8, product.dtype) * norm * math.sqrt(dim)
    return jnp.minimum(norm, _trace_bound(trace(product), slack, jnp.square(norm), dim))


def _trace_bound(trace, slack, squared_norm, dim):
    """Wolkowicz-Styan: the largest of `dim` numbers from their sum and the sum of their squares.

    `slack` bounds the error of `trace` and `squared_norm` is not below the truth. The bound grows
    with the trace where it is below its largest value, the norm, which the caller compares with.
    """
    mean = trace / dim + slack
    mean_low = jnp.maximum(trace / dim - slack, 0)
    spread = jnp.maximum(squared_norm - dim * jnp.square(mean_low), 0)
    spread = spread + 16 * unit_roundoff(trace.dtype) * squared_norm
    return round_up(mean + safe_sqrt(spread * ((dim - 1) / dim)), 4)


def _deflated_bound(product, packed, v, rounded=True):
    """Upper bound on the largest eigenvalue of a Hermitian matrix `X`.

    For a unit vector v let `a = v* X v`, `b = |X v - a v|` and let c bound the largest eigenvalue
    of X on the complement of v. The largest eigenvalue of X is at most that of the 2 x 2 matrix
    `[[a, b], [b, c]]`. Here c is the smaller of the Frobenius norm of the complement,
    `c^2 = |X|_F^2 - a^2 - 2 b^2`, and the bound of Wolkowicz and Styan from its trace. Any v is
    valid; one near the top makes it tight. Where the spectrum is flat and X near a multiple of 1, the
    roots above turn the rounding `e` of their arguments into `sqrt(e)`; row sums do not.
    """
    if not packed:  # what a product left of asymmetry is rounding and counted there
        product = (product + transpose(product)) / 2
    dim = product.shape[-1]
    rounding = rounded * gamma((2 * dim if packed else dim) + 10, product.dtype)
    norm = _frobenius_bound(product, rounded=rounded)
    squared_norm = round_up(jnp.square(norm))

    x = apply(product, v, packed)
    a = jnp.sum(v * x, axis=(-2, -1))
    b = safe_norm(x - a[..., None, None] * v, axis=(-2, -1))

    slack = 12 * rounding * norm
    a_low, b_low = jnp.maximum(a - slack, 0), jnp.maximum(b - slack, 0)
    a, b = a + slack, b + slack
    c_squared = squared_norm - jnp.square(a_low) - 2 * jnp.square(b_low)
    c_squared = jnp.maximum(c_squared, 0) + 16 * unit_roundoff(product.dtype) * squared_norm
    c = round_up(safe_sqrt(c_squared))
    if dim > 2:  # the complement has dim - 1 eigenvalues
        rest = trace(product) - a_low
        c = jnp.minimum(c, _trace_bound(rest, 2 * slack, c_squared, dim - 1))
    half = (a - c) / 2
    bound = round_up((a + c) / 2 + safe_sqrt(jnp.square(half) + jnp.square(b)), 8)
    row_sums = _row_sum_bound(product, packed, rounded)
    return jnp.minimum(jnp.minimum(norm, bound), row_sums)


def _row_sum_bound(product, packed, rounded=True):
    """The largest row sum of absolute values, which for `A + iB` are at most `|A| + |B|`."""
    entries = safe_abs(product)
    if packed:
        entries = jnp.maximum(entries, transpose(entries))
    return round_up(jnp.max(entries.sum(-1), axis=-1), (product.shape[-1] if rounded else 0) + 2)


BOUNDS = {
    "deflated": _deflated_bound,
    "wolkowicz_styan": _wolkowicz_styan_bound,
    "frobenius": _frobenius_bound,
}


def top_vector(product, packed):
    """A unit vector near the top: the largest column after two power steps.

    `float[..., q, 1]`, or `float[..., q, 2]` for the real and the imaginary part.
    """
    if not packed:
        product = (product + transpose(product)) / 2
    v = _largest_column(product, packed)
    for _ in range(2):
        v = unit_vector(apply(product, v, packed))
    return v


def _largest_column(product, packed):
    index = jnp.argmax(jnp.square(product).sum(-2), axis=-1)[..., None, None]
    column = jnp.take_along_axis(product, index, axis=-1)
    if not packed:
        return column
    row = transpose(jnp.take_along_axis(product, index, axis=-2))
    return jnp.concatenate([column + row, column - row], axis=-1) / 2


def unit_vector(v):
    """`v` over its norm, the last two axes being one vector; zero stays zero."""
    v = v / power_of_two(jnp.max(jnp.abs(v), axis=(-2, -1), keepdims=True))
    return v * safe_rsqrt(jnp.sum(jnp.square(v), axis=(-2, -1), keepdims=True))
