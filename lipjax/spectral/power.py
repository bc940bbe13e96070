r"""Lower bounds on spectral norms: power iteration, for matrices and zero-padded convolutions.

For any vector $v$, $|W v| / |v| \le \|W\|$; power iteration finds a $v$ that makes it large. What is
returned has the rounding of that quotient subtracted, so it is a lower bound whatever $v$ is. It is
no substitute for an upper bound: the distance to the norm is not known.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import (
    HIGHEST,
    as_device_array,
    einsum,
    gamma,
    power_of_two,
    round_down,
    round_up,
    safe_norm,
    safe_sqrt,
)
from lipjax.spectral._finals import unit_vector
from lipjax.spectral._iteration import scaled_rayleigh
from lipjax.spectral.gram import Enclosure, checked_matrix, mark_nonfinite, widened
from lipjax.typing import Array


def power_iteration(key: Array, matrix: Array, *, num_iters: int = 20) -> Array:
    """Lower bound on the spectral norm by power iteration from a random start.

    Args:
        key: For the start.
        matrix: `float[..., p, q]` or complex; leading axes are a batch.
        num_iters: Number of steps, two matrix-vector products each.

    Returns:
        `float[...]`, in the real dtype of `matrix`.

    Guarantee: at most the largest singular value of the array that was passed in, rounding
    included. Zero for the zero matrix, NaN for a NaN, inf for an infinity.

    Raises:
        ValueError: for fewer than two axes, an empty axis, a dtype that is not floating, or a
            `num_iters` below 1.

    >>> import jax, jax.numpy as jnp
    >>> matrix = jnp.diag(jnp.array([3.0, 1.0, 0.5]))
    >>> bool(2.99 < power_iteration(jax.random.key(0), matrix) <= 3.0)
    True
    """
    _checks.one_key(key=key)
    _checks.integer(1, num_iters=num_iters)
    matrix, lost = as_device_array(matrix, axis=(-2, -1))
    lower = _power_iteration(key, *checked_matrix(matrix), num_iters)
    return widened(Enclosure(lower, lower), lost).lower


@functools.partial(jax.jit, static_argnums=3)
def _power_iteration(key, re, im, num_iters):
    parts = [re] if im is None else [re, im]
    outer = power_of_two(
        functools.reduce(jnp.maximum, (jnp.max(jnp.abs(p), (-2, -1)) for p in parts))
    )
    scaled = (
        re / outer[..., None, None]
        if im is None
        else lax.complex(re / outer[..., None, None], im / outer[..., None, None])
    )
    v = jax.random.normal(key, (*re.shape[:-2], re.shape[-1], 1), re.dtype)
    v = v.astype(scaled.dtype) + jnp.zeros_like(scaled, shape=())  # as sharded as the matrix

    def step(_, v):
        forth = jnp.matmul(scaled, v, precision=HIGHEST)
        back = jnp.matmul(jnp.swapaxes(scaled.conj(), -1, -2), forth, precision=HIGHEST)
        length = safe_norm(jnp.abs(back), axis=(-2, -1), keepdims=True)
        return jnp.where(length > 0, back / jnp.where(length > 0, length, 1).astype(v.dtype), v)

    v = lax.fori_loop(0, num_iters, step, v)
    pair = v.real if im is None else jnp.concatenate([v.real, v.imag], axis=-1)
    lower = scaled_rayleigh(scaled.real, None if im is None else scaled.imag, unit_vector(pair))
    tiny = 2 * re.shape[-2] * re.shape[-1] * float(jnp.finfo(re.dtype).tiny)
    lower = jnp.maximum(round_down(lower * outer) - tiny, 0)
    return mark_nonfinite(jnp.minimum(lower, float(jnp.finfo(re.dtype).max)), parts)


def zero_padded_lower(
    kernel: Array, *, padding, input_size, strides, dilation, groups, num_iters=32
):
    """Lower bound on the norm of a convolution padded with zeros, `"SAME"` or pairs, `float[]`.

    The convolution of the vector that is measured is written out as one matrix product per group,
    to which the rounding model applies; the steps before may use any algorithm.
    """
    dims = kernel.ndim - 2
    spatial = "DHW"[-dims:]
    if padding != "SAME":
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape)]
        if any(n + sum(p) < r for n, p, r in zip(input_size, padding, reach)):  # no outputs
            return mark_nonfinite(jnp.zeros((), kernel.dtype), [kernel], tuple(range(kernel.ndim)))
    scale = power_of_two(jnp.max(jnp.abs(kernel)))
    scaled = kernel / scale

    def apply(x):
        return lax.conv_general_dilated(
            x[None],
            scaled,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=groups,
            precision=HIGHEST,
        )[0]

    x = jax.random.normal(jax.random.key(0), (*input_size, kernel.shape[-2] * groups), kernel.dtype)
    x = x + jnp.zeros_like(kernel, shape=())  # as sharded as the kernel
    adjoint = jax.linear_transpose(apply, x)

    def step(_, x):
        (back,) = adjoint(apply(x))
        length = safe_norm(back)
        return jnp.where(length > 0, back / jnp.where(length > 0, length, 1), x)

    x = lax.stop_gradient(lax.fori_loop(0, num_iters, step, x / safe_norm(x)))
    y = _written_out(scaled, x, padding, strides, dilation, groups)
    sums = jnp.sum(safe_norm(scaled, axis=(-2, -1)))
    slack = gamma(kernel[..., 0].size + 8, kernel.dtype) * round_up(sums, kernel.size)
    (before, short), (after, shorter) = _length(x), _length(y)
    lower = round_down(after * (1 - shorter) - slack * before * (1 + short), 4)
    lower = jnp.where(before > 0, lower / jnp.where(before > 0, before * (1 + short), 1), 0)
    tiny = kernel.size * float(jnp.finfo(kernel.dtype).tiny)
    lower = jnp.maximum(round_down(jnp.maximum(lower, 0) * scale, 4) - tiny, 0)
    lower = jnp.minimum(lower, float(jnp.finfo(kernel.dtype).max))
    return mark_nonfinite(lower, [kernel], tuple(range(kernel.ndim)))


def _length(x):
    """The norm of `x`, and a bound on its relative error: one axis after the other, short sums."""
    total, roundings = jnp.square(x), 4
    for size in x.shape:
        total, roundings = lax.optimization_barrier(total.sum(0)), roundings + size
    return safe_sqrt(total), gamma(roundings, x.dtype)


def _written_out(kernel, x, padding, strides, dilation, groups):
    """The convolution as a product of patches and taps, `float[outputs, channels_out]`."""
    *window, c_in, c_out = kernel.shape
    sizes = x.shape[:-1]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, window)]
    if padding == "SAME":
        counts = [-(-n // s) for n, s in zip(sizes, strides)]
        missing = [max((m - 1) * s + r - n, 0) for m, s, r, n in zip(counts, strides, reach, sizes)]
        padding = [(p // 2, p - p // 2) for p in missing]
    x = jnp.pad(x, [*padding, (0, 0)])
    outputs = [(n - r) // s + 1 for n, r, s in zip(x.shape, reach, strides)]
    patches = []
    for tap in itertools.product(*map(range, window)):
        start = [t * d for t, d in zip(tap, dilation)]
        stop = [a + (m - 1) * s + 1 for a, m, s in zip(start, outputs, strides)]
        index = tuple(slice(a, b, s) for a, b, s in zip(start, stop, strides))
        patches.append(x[index].reshape(-1, groups, c_in))
    patches = jnp.stack(patches, axis=2)  # [outputs, groups, taps, channels]
    taps = kernel.reshape(-1, c_in, groups, c_out // groups)
    return einsum("ngti,tigo->ngo", patches, taps).reshape(-1, c_out)
