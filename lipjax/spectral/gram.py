r"""Spectral norms of matrices by Gram iteration, with the rounding error inside the bound.

Write $H_0 = W$ and $H_{t+1} = H_t^* H_t$. The largest singular values obey
$\sigma_1(H_{t+1}) = \sigma_1(H_t)^2$, so an upper bound of $\sigma_1(H_N)$ unwinds to one of
$\sigma_1(W)$ through $N$ square roots, which shrink its relative excess by $2^N$
(Delattre, Barthélemy, Araujo, Allauzen 2023, https://arxiv.org/abs/2305.16173).

Three things differ from the paper. Every iterate is scaled by a power of two, which is exact, so
that nothing overflows and no logarithm is needed. The last iterate is bounded by deflation of one
vector instead of its Frobenius norm. And each floating-point product contributes a proved error
term on the way back up, so that the float32 result is at least the norm of the float32 input.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import (
    einsum,
    gamma,
    matmul,
    power_of_two,
    round_up,
    safe_norm,
    safe_rsqrt,
    safe_sqrt,
    unit_roundoff,
)
from lipjax.typing import Array

BLOCK = 256
"""Longest sum that one matrix product may form: shorter sums have smaller proved errors."""


def gram_iteration(matrix: Array, *, num_iters: int = 4) -> Array:
    """Upper bound on the spectral norm of a matrix.

    Args:
        matrix: `float[..., p, q]` or complex; leading axes are a batch.
        num_iters: Number of Gram products, at least 1. Each one costs about
            `2 min(p, q)^2 max(p, q)` operations (the first) or `2 min(p, q)^3`.

    Returns:
        `float[...]`, one bound per matrix, in the real dtype of `matrix`.

    Guarantee: at least the largest singular value of the array that was passed in, in its own
    floating-point dtype: the proved rounding error of every product is added. In exact arithmetic
    it is at most `min(p, q)^(2^-(num_iters + 1))` times the norm and never grows with `num_iters`;
    rounding adds a relative excess of about `max(p, q) * 2^-24 * (|W|_F / |W|_2)^2` at most in
    float32. Zero with zero gradient at the zero matrix; NaN if there is a NaN, inf if there is an
    infinity. The gradient is finite everywhere else too, also at repeated singular values.

    Raises:
        ValueError: for fewer than two axes, an empty axis, or a dtype that is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(3.0 <= gram_iteration(jnp.diag(jnp.array([3.0, 1.0, 0.5]))) < 3.001)
        True

    Reference: Delattre et al. (2023), https://arxiv.org/abs/2305.16173, algorithm 1.
    """
    matrix = jnp.asarray(matrix)
    _checks.at_least_rank(2, "[..., p, q]", matrix=matrix)
    _checks.nonempty(matrix=matrix)
    _checks.floating(matrix=matrix)
    _checks.integer(1, num_iters=num_iters)
    if jnp.iscomplexobj(matrix):
        return gram_bound(matrix.real, matrix.imag, num_iters=num_iters)
    return gram_bound(matrix, None, num_iters=num_iters)


@functools.partial(jax.jit, static_argnames="num_iters")
def gram_bound(re: Array, im: Array | None, *, num_iters: int) -> Array:
    """`gram_iteration` of `re + i im`, `float[..., p, q]` each; `im` is None for real matrices."""
    parts = [re] if im is None else [re, im]
    rows, cols = re.shape[-2:]
    if rows < cols:  # same singular values, smaller Gram matrix
        re, im = _transpose(re), None if im is None else _transpose(im)
        rows, cols = cols, rows
    outer = power_of_two(_largest(re, im))
    re, im = _scale(re, im, outer)
    scales, errors = [], []
    for _ in range(num_iters):
        scale = power_of_two(safe_norm(_joined(re, im), axis=(-2, -1)))
        re, im = _scale(re, im, scale)
        re, im, error = _gram(re, im)
        scales.append(scale)
        errors.append(error)
    bound = _deflated_bound(*_hermitian(re, im))
    for scale, error in zip(reversed(scales), reversed(errors)):
        bound = round_up(safe_sqrt(bound + error) * scale, 2)
    # Entries below the smallest normal number may have been read as zero.
    tiny = math.sqrt(2 * rows * cols) * float(jnp.finfo(re.dtype).tiny)
    bound = round_up(bound * outer) + jnp.where(_any_nonzero(parts), tiny, 0).astype(re.dtype)
    return _mark_nonfinite(bound, parts)


def _gram(re, im):
    """`(re + i im)^* (re + i im)` and a bound on the Frobenius norm of its rounding error.

    A complex product takes two real ones: with `T = (A + B)^T (A + B)` and `R = A^T B` the real
    part is `T - R - R^T` and the imaginary part `R - R^T`. Entrywise errors of at most
    `gamma |X|^T |Y|` add up to `gamma |H|_F^2` for real and `sqrt(3^2 + 1) gamma |H|_F^2` for
    complex matrices, and the trace of the product is that squared norm up to the same error.
    """
    rows, cols = re.shape[-2:]
    length = min(rows, BLOCK) + -(-rows // BLOCK) + 8
    if im is None:
        re, kappa = contract(re, re), 1.0
    else:
        total = contract(re + im, re + im)
        cross = contract(re, im)
        re = total - cross - _transpose(cross)
        im = cross - _transpose(cross)
        kappa = 3.17
    relative = kappa * gamma(length + cols, re.dtype)
    squared_norm = jnp.trace(re, axis1=-2, axis2=-1)
    error = lax.stop_gradient(round_up(squared_norm * (relative / (1 - relative)), 8))
    return re, im, error


def contract(a: Array, b: Array) -> Array:
    """`a^T b` over axis -2, as a sum of products over blocks of at most `BLOCK` rows.

    Any entry is the result of at most `BLOCK + rows / BLOCK` roundings.
    """
    rows = a.shape[-2]
    if rows <= BLOCK:
        return matmul(_transpose(a), b)
    blocks = -(-rows // BLOCK)

    def split(x):
        pad = [(0, 0)] * (x.ndim - 2) + [(0, blocks * BLOCK - rows), (0, 0)]
        x = jnp.pad(x, pad).reshape(*x.shape[:-2], blocks, BLOCK, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    def add(total, ab):
        return total + matmul(_transpose(ab[0]), ab[1]), None

    a, b = split(a), split(b)
    first = matmul(_transpose(a[0]), b[0])
    return lax.scan(add, first, (a[1:], b[1:]))[0]


def _deflated_bound(re, im):
    """Upper bound on the largest eigenvalue of a Hermitian matrix `X`, `float[..., q, q]`.

    For a unit vector v let `a = v* X v`, `b = |X v - a v|` and let c bound the largest eigenvalue
    of X on the complement of v. The largest eigenvalue of X is at most that of the 2 x 2 matrix
    `[[a, b], [b, c]]`. Here c is the smaller of the Frobenius norm of the complement,
    `c^2 = |X|_F^2 - a^2 - 2 b^2`, and the bound of Wolkowicz and Styan from its trace. Any v is
    valid; the largest column after two power steps makes it tight.
    """
    dim = re.shape[-1]
    length = (dim if im is None else 2 * dim) + 8
    rounding = gamma(length, re.dtype)
    squares = jnp.square(re) if im is None else jnp.square(re) + jnp.square(im)
    columns = lax.optimization_barrier(squares.sum(-2))  # two short sums, never one long one
    squared_norm = round_up(columns.sum(-1) * (1 + 2 * rounding), 2)
    norm = round_up(safe_sqrt(squared_norm))

    start = jnp.argmax(columns, axis=-1)[..., None, None]
    v_re = jnp.take_along_axis(re, start, axis=-1)[..., 0]
    v_im = None if im is None else jnp.take_along_axis(im, start, axis=-1)[..., 0]
    for _ in range(2):
        v_re, v_im = _unit(*_apply(re, im, v_re, v_im))
    v_re = lax.stop_gradient(v_re)
    v_im = None if v_im is None else lax.stop_gradient(v_im)

    x_re, x_im = _apply(re, im, v_re, v_im)
    a = jnp.sum(v_re * x_re, -1) if im is None else jnp.sum(v_re * x_re + v_im * x_im, -1)
    rest_re = x_re - a[..., None] * v_re
    rest_im = None if im is None else x_im - a[..., None] * v_im
    b = safe_norm(_joined(rest_re, rest_im, axis=-1), axis=-1)

    slack = 12 * rounding * norm
    a_low, b_low = jnp.maximum(a - slack, 0), jnp.maximum(b - slack, 0)
    a, b = a + slack, b + slack
    c_squared = squared_norm - jnp.square(a_low) - 2 * jnp.square(b_low)
    c_squared = jnp.maximum(c_squared, 0) + 16 * unit_roundoff(re.dtype) * squared_norm
    c = round_up(safe_sqrt(c_squared))
    if dim > 2:  # Wolkowicz-Styan on the complement, which has dim - 1 eigenvalues
        trace = jnp.trace(re, axis1=-2, axis2=-1)
        mean = (trace - a_low) / (dim - 1) + slack
        mean_low = jnp.maximum((trace - a) / (dim - 1) - slack, 0)
        spread = jnp.maximum(c_squared - (dim - 1) * jnp.square(mean_low), 0)
        spread = spread + 16 * unit_roundoff(re.dtype) * squared_norm
        c = jnp.minimum(c, round_up(mean + safe_sqrt(spread * ((dim - 2) / (dim - 1))), 4))
    half = (a - c) / 2
    bound = round_up((a + c) / 2 + safe_sqrt(jnp.square(half) + jnp.square(b)), 8)
    return jnp.minimum(norm, bound)


def _apply(re, im, v_re, v_im):
    """`X v` for a vector `float[..., q]`."""
    if im is None:
        return einsum("...ij,...j->...i", re, v_re), None
    return (
        einsum("...ij,...j->...i", re, v_re) - einsum("...ij,...j->...i", im, v_im),
        einsum("...ij,...j->...i", re, v_im) + einsum("...ij,...j->...i", im, v_re),
    )


def _unit(v_re, v_im):
    both = _joined(v_re, v_im, axis=-1)
    both = both / power_of_two(jnp.max(jnp.abs(both), axis=-1, keepdims=True))
    both = both * safe_rsqrt(jnp.sum(jnp.square(both), axis=-1, keepdims=True))
    return (both, None) if v_im is None else tuple(jnp.split(both, 2, axis=-1))


def _hermitian(re, im):
    """The Hermitian part; what a product left of asymmetry is rounding and counted there."""
    return (re + _transpose(re)) / 2, None if im is None else (im - _transpose(im)) / 2


def _joined(re, im, axis=-2):
    return re if im is None else jnp.concatenate([re, im], axis=axis)


def _scale(re, im, scale):
    scale = scale[..., None, None]
    return re / scale, None if im is None else im / scale


def _largest(re, im):
    largest = jnp.max(jnp.abs(re), axis=(-2, -1))
    return largest if im is None else jnp.maximum(largest, jnp.max(jnp.abs(im), axis=(-2, -1)))


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


def _any_nonzero(parts, axes=(-2, -1)):
    """Whether any bit but a sign is set: comparisons may read subnormal numbers as zero."""
    found = False
    for part in parts:
        part = lax.stop_gradient(part)
        integer = jnp.int32 if part.dtype == jnp.float32 else jnp.int64
        bits = lax.optimization_barrier(lax.bitcast_convert_type(part, integer))
        found = found | jnp.any((bits << 1) != 0, axis=axes)
    return found


def _mark_nonfinite(bound, parts, axes=(-2, -1)):
    """NaN where an input is NaN, inf where one is infinite."""
    for part in parts:
        bound = jnp.where(jnp.any(jnp.isinf(part), axis=axes), jnp.inf, bound)
    for part in parts:
        bound = jnp.where(jnp.any(jnp.isnan(part), axis=axes), jnp.nan, bound)
    return bound
