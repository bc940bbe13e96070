r"""Spectral rescaling: a diagonal that dominates the Gram matrix, and weights of norm at most 1.

For any matrix $W$ with Gram matrix $G = W^T W$, any power $p = 2^{N-1}$ and any positive $r$, let

$$ t_i = \Big( \sum_j |(G^p)_{ij}| \, r_j / r_i \Big)^{1/p}. $$

Then $\mathrm{diag}(t) \succeq W^T W$: the weighted row sums make $\mathrm{diag}(t^p) - G^p$
diagonally dominant after a change of variables, and the $p$-th root is operator monotone
(Löwner-Heinz). So $W \mathrm{diag}(t)^{-1/2}$ has norm at most 1. $N = 1$ with $r = 1$ is the
almost-orthogonal layer (Prach, Lampert 2022, https://arxiv.org/abs/2208.03160); $r = e^q$ gives
the layers of Araujo et al. (2023), https://arxiv.org/abs/2303.03169; $N \to \infty$ divides by the
spectral norm (Delattre, Barthélemy, Allauzen 2024, https://arxiv.org/abs/2402.00240).

For a convolution $G$ is the autocorrelation of the kernel and the sum also runs over its taps. The
result dominates the symbol at every frequency, so it holds for circular and for zero padding, any
stride, any dilation and any input size. It does not hold for reflecting or replicating paddings,
whose own norm is above 1.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax._numerics import (
    einsum,
    gamma,
    matmul,
    power_of_two,
    round_up,
    safe_abs,
    safe_rsqrt,
    safe_sqrt,
    times_square,
    unit_roundoff,
)
from lipjax.spectral._gram_sums import abs_gram_sums
from lipjax.spectral._power_kernel import power_kernel
from lipjax.spectral._products import contract, sum_length
from lipjax.spectral._torus import check_kernel
from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.gram import gram_iteration
from lipjax.typing import Array

LARGEST_LOG_Q = 8.0
"""Weights are clipped to `exp(+-8)` around their mean: any weights are valid, huge ones overflow."""


SIDES = ("auto", "input", "output")


@functools.partial(jax.jit, static_argnames=("num_iters", "tighten", "side"))
def rescale(
    matrix: Array,
    *,
    num_iters: int = 1,
    log_q: Array | None = None,
    tighten: bool = False,
    side: str = "auto",
) -> Array:
    """The matrix with rows or columns scaled so that its spectral norm is at most 1.

    Args:
        matrix: `float[..., p, q]`; leading axes are a batch.
        num_iters: 1 scales like the almost-orthogonal layer; more iterations approach a division
            by the spectral norm, at one product of the Gram matrix each. In float32 the proved
            rounding limits how far, the sooner the larger the matrix; `tighten` makes up for it.
        log_q: `float[..., min(p, q)]`, or of the side that is chosen, logarithms of positive
            weights; None means equal ones.
        tighten: Whether to divide the result by a bound on its norm where that is below 1: the norm
            is then 1 up to the tightness of that bound, at four more products.
        side: What is scaled: `"input"`, the rows (the almost-orthogonal layer as published), or
            `"output"`, the columns. `"auto"` takes the one with the smaller Gram matrix, the columns
            of a square matrix.

    Returns:
        `float[..., p, q]` of norm at most 1.

    Guarantee: the exact spectral norm of the returned array is at most 1, in the dtype of the
    input, rounding included. A matrix with orthonormal columns (or rows) is returned up to that
    rounding. Zero columns stay zero, with finite gradients. NaN in gives NaN out; an infinity
    gives NaN or zeros.

    Raises:
        ValueError: for a wrong rank, an empty axis, a dtype other than float32 and float64,
            `log_q` of the wrong length, or an unknown side.

    Gradients: forward and reverse mode, any order. With `tighten` the first order only: the second is an
    error.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> weights = rescale(jax.random.normal(jax.random.key(0), (8, 5)))
        >>> bool(jnp.linalg.norm(weights, ord=2) <= 1)
        True
    """
    matrix = jnp.asarray(matrix)
    _check_matrix(matrix, num_iters)
    _checks.truth(tighten=tighten)
    if on_rows(matrix, side):
        options = dict(num_iters=num_iters, log_q=log_q, tighten=tighten, side="output")
        return _transpose(rescale(_transpose(matrix), **options))
    scale = power_of_two(jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True))
    matrix = matrix / scale
    t = dominating_diagonal(matrix, num_iters=num_iters, log_q=log_q)
    shrink = 1 - 8 * unit_roundoff(matrix.dtype) * math.sqrt(matrix.shape[-1])
    matrix = matrix * (safe_rsqrt(t) * shrink)[..., None, :]
    if not tighten:
        return matrix
    norm = gram_iteration(matrix, num_iters=4, gradient="norm")
    return _tightened(matrix, norm[..., None, None], math.sqrt(matrix.shape[-1]))


@functools.partial(jax.jit, static_argnames=("num_iters", "tighten", "side"))
def conv_rescale(
    kernel: Array,
    *,
    num_iters: int = 1,
    log_q: Array | None = None,
    tighten: bool = False,
    side: str = "auto",
) -> Array:
    """The kernel with one channel axis scaled so that the convolution has norm at most 1.

    Args:
        kernel: `float[*window, channels_in, channels_out]`, one to three window axes.
        num_iters: As in `rescale`. The autocorrelation kernel doubles its width each time, so the
            cost grows quickly; 1 to 3 are practical.
        log_q: `float[min(channels_in, channels_out)]`, or of the side that is chosen, logarithms of
            positive weights.
        tighten: Whether to divide the result by a bound on its norm for every size where that is
            below 1 (four Gram products per frequency of a grid of 32 points per axis).
        side: The channels that are scaled, as in `rescale`: `"input"`, `"output"`, or `"auto"`, the
            fewer.

    Returns:
        A kernel of the same shape.

    Guarantee: the convolution with exactly the returned numbers has norm at most 1 for circular
    and zero padding, every stride, dilation and input size, rounding included. Not for reflecting
    or replicating paddings. Zeros, NaN and infinities as in `rescale`.

    Raises:
        ValueError: as `rescale`; also where the autocorrelation kernel of that many iterations would
            have more than 10000 taps (6 iterations for 3 x 3). `tighten` makes up for fewer.

    Example:
        >>> import jax
        >>> from lipjax.spectral import conv_spectral_norm
        >>> kernel = conv_rescale(jax.random.normal(jax.random.key(0), (3, 3, 2, 4)))
        >>> bool(conv_spectral_norm(kernel, padding="zero", input_size=6) <= 1)
        True
    """
    kernel = jnp.asarray(kernel)
    check_kernel(kernel)
    _checks.truth(tighten=tighten)
    if on_rows(kernel, side):
        options = dict(num_iters=num_iters, log_q=log_q, tighten=tighten, side="output")
        return _transpose(conv_rescale(_transpose(kernel), **options))
    kernel = kernel / power_of_two(jnp.max(jnp.abs(kernel)))
    t = conv_dominating_diagonal(kernel, num_iters=num_iters, log_q=log_q)
    # Rounding a kernel entrywise moves its symbol by at most u sqrt(taps) |K|_F.
    reach = math.sqrt(math.prod(kernel.shape[:-1]) // kernel.shape[-2] * kernel.shape[-1])
    shrink = 1 - 8 * unit_roundoff(kernel.dtype) * reach
    kernel = kernel * jnp.broadcast_to(safe_rsqrt(t) * shrink, kernel.shape)
    if not tighten:
        return kernel
    norm = conv_gram_iteration(kernel, padding="any", gradient="norm")
    return _tightened(kernel, norm, reach)


def on_rows(kernel, side: str) -> bool:
    """Whether a side means axis -2 of a matrix or kernel."""
    _checks.one_of(SIDES, side=side)
    return side == "input" or (side == "auto" and kernel.shape[-2] < kernel.shape[-1])


def _tightened(weights, norm, reach):
    """The weights over a bound on their norm; rounding each entry moves it by at most u reach.

    They have norm at most 1 already: a bound that rounding leaves near 1 or above changes nothing.
    """
    shrink = 1 - 8 * unit_roundoff(weights.dtype) * reach
    factor = jnp.maximum(shrink / jnp.where(norm > 0, norm, 1), 1)
    return jnp.where(norm > 0, weights * factor, weights)


@functools.partial(jax.jit, static_argnames="num_iters")
def dominating_diagonal(matrix: Array, *, num_iters: int = 1, log_q: Array | None = None) -> Array:
    """The `t` of this module for `W = matrix`: `diag(t)` dominates `W^T W`.

    Args:
        matrix: `float[..., n, m]`.
        num_iters: N of this module.
        log_q: `float[..., m]`, logarithms of the weights r; None means equal weights.

    Returns:
        `float[..., m]`.

    Guarantee: `diag(t) - W^T W` is positive semidefinite in exact arithmetic for the returned
    floats, wherever t is positive; columns whose t is zero count as removed. The proved rounding
    error is added to t: relative to it, at most about `n 2^-24` times the ratio of the row sums of
    `|W|^T |W|` and of `|W^T W|` for `num_iters=1`.

    >>> import jax.numpy as jnp
    >>> dominating_diagonal(jnp.array([[3.0, 0.0], [0.0, 2.0]])).round(3)
    Array([9., 4.], dtype=float32)
    """
    _check_matrix(matrix, num_iters)
    rows, cols = matrix.shape[-2:]
    scale = power_of_two(jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True))
    matrix = matrix / scale
    unscale = jnp.squeeze(scale, -1)  # twice, since its square may overflow
    alive = jnp.any(matrix != 0, axis=-2)
    weights = positive_weights(log_q, matrix.shape[:-2] + (cols,), matrix.dtype)
    size = lax.stop_gradient(jnp.abs(matrix))
    length = sum_length(rows) + cols + 16
    if num_iters == 1:
        row_sums = abs_gram_sums(matrix, weights)
        spread = einsum("...nm,...n->...m", size, einsum("...nm,...m->...n", size, weights))
        error = 2 * gamma(length, matrix.dtype) * spread
        t = _add_error(row_sums, error, weights, rows * cols, alive)
        return times_square(t, unscale)
    norm = jnp.sqrt(jnp.sum(jnp.square(size), axis=(-2, -1)))  # only multiplies an error term
    powers = _Powers(contract(matrix, matrix), gamma(length, matrix.dtype) * jnp.square(norm) * 2)
    for _ in range(num_iters - 1):
        powers = powers.square(lambda g: matmul(g, g), lambda g: _frobenius(g, (-2, -1)), 0)
    symmetric = (powers.value + _transpose(powers.value)) / 2
    row_sums = einsum("...ij,...j->...i", safe_abs(symmetric), weights)
    t = powers.unwind(row_sums, cols, weights, rows * cols, alive)
    return times_square(_or_frobenius(t, size, 1, alive, weights), unscale)


@functools.partial(jax.jit, static_argnames="num_iters")
def conv_dominating_diagonal(
    kernel: Array, *, num_iters: int = 1, log_q: Array | None = None
) -> Array:
    """The `t` of this module for a convolution, one entry per output channel.

    Args:
        kernel: `float[*window, n, m]`.
        num_iters: N of this module.
        log_q: `float[m]`, logarithms of the weights r.

    Returns:
        `float[m]`.

    Guarantee: with F the symbol of the kernel, `diag(t) - F(w)^* F(w)` is positive semidefinite at
    every frequency w, in exact arithmetic for the returned floats, wherever t is positive.

    Raises:
        ValueError: as `conv_rescale`.

    >>> import jax.numpy as jnp
    >>> conv_dominating_diagonal(jnp.ones((3, 1, 1))).round(3)
    Array([9.], dtype=float32)
    """
    check_kernel(kernel)
    _checks.integer(1, num_iters=num_iters)
    *window, rows, cols = kernel.shape
    taps = math.prod(window)
    scale = power_of_two(jnp.max(jnp.abs(kernel)))
    kernel = kernel / scale
    alive = jnp.any(kernel != 0, axis=tuple(range(kernel.ndim - 1)))
    weights = positive_weights(log_q, (cols,), kernel.dtype)
    size = lax.stop_gradient(jnp.abs(kernel)).reshape(taps, rows, cols).sum(0)
    length = rows + math.prod(2 * k - 1 for k in window) + cols + taps + 16
    if num_iters == 1:
        row_sums = _abs_sums(autocorrelation(kernel), weights)
        spread = einsum("nm,n->m", size, einsum("nm,m->n", size, weights))
        error = 2 * gamma(length, kernel.dtype) * spread
        t = _add_error(row_sums, error, weights, taps * kernel.size, alive)
        return times_square(t, scale)
    if _by_frequencies_is_cheaper(tuple(window), rows, cols, num_iters):
        half, error, scales = power_kernel(kernel, num_iters)
        half = safe_abs(half).sum(0)
        sums = einsum("ij,j->i", half + _transpose(half), weights)
        powers = _Powers(half, error, scales)
        lags = math.prod((k - 1) * 2**num_iters + 1 for k in window)
    else:
        norm = _tap_norm(kernel)
        error = gamma(length, kernel.dtype) * jnp.square(norm) * 2
        powers = _Powers(autocorrelation(kernel), error)
        for _ in range(num_iters - 1):
            powers = powers.square(autocorrelation, _tap_norm, len(window))
        axes = tuple(range(len(window)))
        symmetric = (powers.value + _transpose(jnp.flip(powers.value, axes))) / 2
        sums = _abs_sums(symmetric, weights)
        lags = math.prod(powers.value.shape[:-2])
    t = powers.unwind(sums, lags + cols, weights, taps * kernel.size, alive)
    return times_square(_or_frobenius(t, size, taps, alive, weights), scale)


def _or_frobenius(t, size, taps, alive, weights):
    """The same `t` for all, the squared Frobenius norm, where the proved rounding left none.

    Not entry by entry: of two diagonals that dominate, the smaller entries need not. `size` is the
    sum of the absolute values over the taps. Weights that are NaN stay seen.
    """
    roundings = 2 * taps + size.shape[-2] * size.shape[-1] + 2
    total = round_up(jnp.sum(jnp.square(size), axis=(-2, -1)), roundings)
    lost = jnp.isfinite(total) & jnp.isfinite(weights).all(-1) & ~jnp.isfinite(t).all(-1)
    instead = jnp.where(alive, total[..., None], 0)
    return jnp.where(lost[..., None], lax.stop_gradient(instead), t)


def _by_frequencies_is_cheaper(window, rows, cols, num_iters) -> bool:
    """Compares the floating-point operations of the two ways to the power kernel."""
    direct, inner = 0, rows
    for step in range(num_iters):
        widths = [(k - 1) * 2**step + 1 for k in window]
        lags = math.prod(2 * k - 1 for k in widths)
        direct += 2 * math.prod(widths) ** 2 * cols**2 * (inner + lags)
        inner = cols
    points = math.prod((k - 1) * 2**num_iters + 1 for k in window) // 2 + 1
    products = 4 * rows + 4 * (num_iters - 1) * cols
    return points * cols**2 * (products + 4 * points) < direct


def autocorrelation(kernel: Array) -> Array:
    """`A[tau, i, j] = sum_{c, t} K[t + tau, c, i] K[t, c, j]`, the kernel of the Gram operator.

    Args:
        kernel: `float[*window, n, m]`.

    Returns:
        `float[*(2 window - 1), m, m]`, with the tap of lag zero in the middle.

    Written as two matrix products, so that the rounding model of a product applies on every
    backend (convolution libraries may switch to transforms that it does not cover).
    """
    *window, rows, cols = kernel.shape
    taps = math.prod(window)
    flat = kernel.reshape(taps, rows, cols)
    pairs = einsum("tci,scj->tsij", flat, flat)
    lags = jnp.asarray(_lag_matrix(tuple(window)), kernel.dtype)
    lagged = matmul(lags, pairs.reshape(taps * taps, cols * cols))
    return lagged.reshape(*(2 * k - 1 for k in window), cols, cols)


def positive_weights(log_q, shape, dtype) -> Array:
    """`exp(log_q)` around its mean, clipped; ones for None."""
    if log_q is None:
        return jnp.ones(shape, dtype)
    log_q = jnp.asarray(log_q)
    if log_q.shape != shape:
        raise ValueError(f"log_q has shape {log_q.shape}; it must have shape {shape}.")
    _checks.real_floating(log_q=log_q)
    centered = log_q - jnp.mean(log_q, axis=-1, keepdims=True)
    return jnp.exp(jnp.clip(centered, -LARGEST_LOG_Q, LARGEST_LOG_Q))


class _Powers:
    """`G^p` by repeated squaring, scaled by powers of two, with a bound on its error.

    The error is measured in the spectral norm (for a convolution, at its worst frequency).
    """

    def __init__(self, value, error, scales=()):
        self.value = value
        self.error = lax.stop_gradient(error)
        self.scales = scales

    def square(self, square, frobenius, lags):
        """One squaring.

        `square(value)` is its product, whose rounding is at most `gamma frobenius(value)^2`; the
        first `lags` axes are taps.
        """
        size = lax.stop_gradient(frobenius(self.value))
        scale = power_of_two(size)
        wide = scale.reshape(scale.shape + (1,) * (self.value.ndim - scale.ndim))
        value, size, error = self.value / wide, size / scale, self.error / scale
        terms = math.prod(value.shape[:lags]) * value.shape[-1]
        rounding = 2 * gamma(terms + 16, value.dtype) * jnp.square(size)
        sums = jnp.abs(lax.stop_gradient(value)).sum(tuple(range(lags)))
        norm = jnp.maximum(sums.sum(-1).max(-1), sums.sum(-2).max(-1)) * (1 + 1e-3)
        error = round_up(2 * norm * error + jnp.square(error) + rounding, 8)
        return _Powers(square(value), error, (*self.scales, scale))

    def unwind(self, row_sums, terms, weights, underflows, alive):
        """`t` from the weighted row sums of `|G^p|`, of that many terms, by square roots."""
        rounding = gamma(terms + 8, weights.dtype) * lax.stop_gradient(row_sums)
        spread = self.error[..., None] * weights + 2 * rounding
        t = _add_error(row_sums, spread, weights, underflows, alive)
        for scale in reversed(self.scales):
            t = round_up(safe_sqrt(t) * scale[..., None], 3)
        return t


def _add_error(row_sums, error, weights, underflows, alive):
    """`(row_sums + error) / weights`, rounded up, and 0 for the columns that are zero."""
    tiny = underflows * float(jnp.finfo(row_sums.dtype).tiny)
    tiny = tiny * jnp.max(weights, axis=-1, keepdims=True)
    total = row_sums + lax.stop_gradient(error + tiny)
    return jnp.where(alive | jnp.isnan(row_sums), round_up(total / weights, 8), 0)


def _abs_sums(lagged, weights):
    """`sum_tau sum_j |A_tau|_ij r_j` of `float[*lags, m, m]`."""
    sums = safe_abs(lagged).reshape(-1, *lagged.shape[-2:]).sum(0)
    return einsum("ij,j->i", lax.optimization_barrier(sums), weights)


def _tap_norm(kernel):
    """`sum_t |K_t|_F`, at least the norm of the symbol at every frequency."""
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    return round_up(jnp.sum(_frobenius(flat, (-2, -1))), flat.shape[0] + 8)


def _frobenius(x, axis):
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=axis))
    terms = math.prod(x.shape[a] for a in axis)
    return norm * (1 + min(0.5, 2 * terms * unit_roundoff(x.dtype)))


@functools.lru_cache(maxsize=64)
def _lag_matrix(window):
    """`0/1[lags, taps * taps]`: which pairs of taps (t, s) have which lag t - s."""
    taps = np.stack(np.meshgrid(*[np.arange(k) for k in window], indexing="ij"), -1)
    taps = taps.reshape(-1, len(window))
    lags = taps[:, None, :] - taps[None, :, :] + np.asarray(window) - 1
    index = np.ravel_multi_index(np.moveaxis(lags, -1, 0), [2 * k - 1 for k in window])
    matrix = np.zeros((math.prod(2 * k - 1 for k in window), len(taps) ** 2), np.float32)
    matrix[index.reshape(-1), np.arange(len(taps) ** 2)] = 1
    return matrix


def _check_matrix(matrix, num_iters):
    _checks.at_least_rank(2, "[..., n, m]", matrix=matrix)
    _checks.nonempty(matrix=matrix)
    _checks.real_floating(matrix=matrix)
    _checks.integer(1, num_iters=num_iters)


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)
