r"""The kernel of a power of a convolution's Gram operator, computed frequency by frequency.

With $F$ the symbol of a kernel, $G = F^* F$ and $p = 2^{N - 1}$, the symbol $G^p$ is a trigonometric
polynomial of degree $d = 2^{N - 1} (k - 1)$ per axis. Its $M = 2 d + 1$ coefficients per axis, the
taps of the power kernel, follow from its values at M frequencies per axis: N Hermitian products at
each of them and one inverse Fourier matrix, where the convolution of the kernel with itself doubles
its width, and with it its cost, at every step.

An error of at most $e$ (spectral norm) at these frequencies is one of at most
$e \prod (1 + (2 / \pi) \ln M)$ at every frequency: the Lebesgue constant of trigonometric
interpolation.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax._numerics import einsum, gamma, power_of_two, round_up, safe_sqrt
from lipjax.spectral._products import contract, first_product, square, sum_length, trace, transpose
from lipjax.spectral._symbol import fourier_matrix, frequencies, symbol_error
from lipjax.typing import Array

LARGEST_GRID = 10_000
"""Taps of the largest power kernel: its inverse Fourier matrix takes 400 MB."""


def power_kernel(kernel: Array, num_iters: int):
    """The taps of `G^p`, a bound on their error and the powers of two that were divided by.

    Args:
        kernel: `float[*window, n, m]`, not far from 1.
        num_iters: N.

    Returns:
        `float[half, m, m]`, one of each pair of opposite lags, the lag zero at half its value and
        opposite lags being transposes; `float[]`, a bound on the spectral norm of the error of the
        symbol at every frequency, underflow not counted; `num_iters - 1` scales, `float[]` each.
    """
    *window, rows, cols = kernel.shape
    grid = tuple((k - 1) * 2**num_iters + 1 for k in window)
    if math.prod(grid) > LARGEST_GRID:
        raise ValueError(
            f"num_iters is {num_iters}; for the window {tuple(window)} the power kernel has "
            f"{math.prod(grid)} taps, more than {LARGEST_GRID}. Use fewer iterations, or "
            "conv_gram_iteration(..., padding='any')."
        )
    points = frequencies(grid)
    taps = kernel.reshape(-1, rows, cols)
    cos, sin = (jnp.asarray(e, kernel.dtype) for e in fourier_matrix(points, grid, window))
    re, im = (einsum("ft,tio->fio", e, taps) for e in (cos, sin))
    product, error = first_product(re, im)
    errors, scales = [jnp.max(error)], []
    for _ in range(num_iters - 1):
        scale = power_of_two(jnp.max(trace(lax.stop_gradient(product))))
        product, error = square(product, jnp.broadcast_to(scale, error.shape), True)
        errors.append(jnp.max(error))
        scales.append(scale)
    constant = lax.stop_gradient(product)
    error = _propagated(_frobenius(constant), errors, scales, symbol_error(taps[None]))

    forth, back = (jnp.asarray(e, kernel.dtype) for e in _inverse(grid))
    flat = product.reshape(len(points), -1)
    flipped = transpose(product).reshape(len(points), -1)
    coefficients = jnp.concatenate([forth, back], axis=0)
    value = contract(coefficients, jnp.concatenate([flat, flipped], axis=0))
    # Sums of `length` terms with coefficients that are themselves off by a few roundings.
    length = sum_length(2 * len(points)) + 8
    count = math.prod(grid)
    weights = jnp.asarray(_weights(points, grid) / count, kernel.dtype)
    mean = round_up(jnp.sum(weights * _frobenius(constant)), len(points) + 8)
    rounding = 2 * math.sqrt(2) * count * gamma(length, kernel.dtype) * mean
    lebesgue = math.prod(1 + 2 / math.pi * math.log(m) for m in grid) * (1 + 1e-6)
    error = round_up(lebesgue * error + rounding, 8)
    return value.reshape(-1, cols, cols), lax.stop_gradient(error), scales


def _propagated(last, errors, scales, symbol):
    """Bound on the error of the last power at each frequency, from that of each product.

    `last` bounds the norm of the last power per frequency, so those of the powers before follow by
    square roots; an error e of a power of norm n is one of at most `2 n e + e^2` of its square.
    """
    norms = [jnp.max(last)]
    for scale, error in zip(reversed(scales), reversed(errors[1:])):
        norms.append(round_up(safe_sqrt(norms[-1] + error) * scale, 3))
    norms.reverse()
    root = round_up(safe_sqrt(norms[0] + errors[0]), 2)  # bounds the computed symbol
    total = errors[0] + 2 * root * symbol + jnp.square(symbol)
    for norm, scale, error in zip(norms, scales, errors[1:]):
        total, norm = total / scale, norm / scale
        total = round_up(2 * norm * total + jnp.square(total) + error, 6)
    return lax.stop_gradient(total)


def _frobenius(product):
    size = product.shape[-1]
    squares = jnp.square(product).sum(-1).sum(-1)
    return round_up(safe_sqrt(squares), 2) * (1 + gamma(2 * size + 8, product.dtype))


@functools.lru_cache(maxsize=16)
def _inverse(grid):
    """Coefficients of the packed powers and of their transposes, `float64[frequencies, half]`.

    A tap is the mean over all frequencies of `Re(e^{i <w, lag>} G)`; of `G = A + iB`, packed as
    `M = A + B`, that is `(cos - sin) M / 2 + (cos + sin) M^T / 2`, with opposite frequencies equal.
    """
    points = frequencies(grid)
    lags = points  # one of each pair of opposite lags, by the same rule
    phase = np.zeros((len(points), len(lags)))
    for axis, m in enumerate(grid):
        phase += (points[:, axis, None] * lags[None, :, axis]) % m / m
    cos, sin = np.cos(2 * np.pi * phase), np.sin(2 * np.pi * phase)
    scale = _weights(points, grid)[:, None] / (2 * math.prod(grid))
    half = np.where(lags.any(axis=1), 1.0, 0.5)
    return scale * half * (cos - sin), scale * half * (cos + sin)


def _weights(points, grid):
    """How many frequencies each one stands for: 2, or 1 where it is its own opposite."""
    own = ((2 * points) % np.asarray(grid) == 0).all(axis=1)
    return np.where(own, 1.0, 2.0)
