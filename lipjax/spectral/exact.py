"""Spectral norms by singular value decomposition: slow, exact up to rounding, for reference."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import HIGHEST, einsum
from lipjax.spectral._symbol import fourier_matrix, frequencies
from lipjax.spectral._torus import check_kernel, split_groups, torus_problem
from lipjax.typing import Array

LARGEST_MATRIX = 2**27
"""Entries of the largest matrix that `conv_spectral_norm` writes out (0.5 GiB in float32)."""


def spectral_norm(matrix: Array) -> Array:
    """Largest singular value of `float[..., p, q]` (or complex), by a full decomposition.

    Exact up to the rounding of the dtype, which may fall on either side: a reference, not a bound.
    Costs about `20 min(p, q)^2 max(p, q)` operations. NaN if there is a NaN or an infinity.

    Raises:
        ValueError: for fewer than two axes, an empty axis or a dtype that is not floating.

    >>> import jax.numpy as jnp
    >>> round(float(spectral_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]))), 4)
    5.0
    """
    matrix = jnp.asarray(matrix)
    _checks.at_least_rank(2, "[..., p, q]", matrix=matrix)
    _checks.nonempty(matrix=matrix)
    _checks.floating(matrix=matrix)
    return jnp.max(jnp.linalg.svd(matrix, compute_uv=False), axis=-1)


def conv_spectral_norm(
    kernel: Array,
    *,
    padding: str,
    input_size: int | Sequence[int],
    strides: int | Sequence[int] = 1,
) -> Array:
    """Spectral norm of a convolution, exact up to rounding.

    Circular padding: the largest singular value over all frequencies (Sedghi, Gupta, Long 2019,
    https://arxiv.org/abs/1805.10408). Zero padding (`SAME`): the matrix of the whole operator is
    written out and decomposed, which only small images allow.

    Args:
        kernel: `float[*window, channels_in, channels_out]`, one to three window axes.
        padding: `"circular"` or `"zero"`.
        input_size: Points per spatial axis.
        strides: Step per axis; must divide the size for circular padding.

    Returns:
        `float[]`. A reference, not a bound: its rounding may fall on either side.

    Raises:
        ValueError: for an unknown padding, strides that do not divide, or an operator whose matrix
            would be too large to write out.

    >>> import jax.numpy as jnp
    >>> blur = jnp.full((3, 3, 1, 1), 1 / 9)
    >>> round(float(conv_spectral_norm(blur, padding="zero", input_size=8)), 4)
    0.9212
    """
    kernel = jnp.asarray(kernel)
    dims = check_kernel(kernel)
    _checks.one_of(("circular", "zero"), padding=padding)
    size = _checks.per_axis(dims, input_size=input_size)
    strides = _checks.per_axis(dims, strides=strides)
    if padding == "zero":
        return spectral_norm(_matrix_of_zero_padded(kernel, size, strides))
    grouped, grid, _ = torus_problem(
        split_groups(kernel, 1),
        padding=padding,
        input_size=size,
        strides=strides,
        dilation=(1,) * dims,
    )
    taps = grouped.reshape(-1, *grouped.shape[-2:])
    parts = fourier_matrix(frequencies(grid), grid, grouped.shape[1:-2])
    re, im = (einsum("ft,tio->fio", jnp.asarray(e, kernel.dtype), taps) for e in parts)
    return jnp.max(spectral_norm(lax.complex(re, im)))


def _matrix_of_zero_padded(kernel, size, strides):
    c_in, c_out = kernel.shape[-2:]
    inputs = math.prod(size) * c_in
    outputs = math.prod(-(-n // s) for n, s in zip(size, strides)) * c_out
    if inputs * outputs > LARGEST_MATRIX:
        raise ValueError(
            f"input_size is {size}; the operator is a {inputs} x {outputs} matrix, more than "
            f"{LARGEST_MATRIX} entries. Use conv_gram_iteration(..., padding='zero')."
        )
    spatial = "DHW"[-len(size) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    basis = jnp.eye(inputs, dtype=kernel.dtype).reshape(inputs, *size, c_in)
    rows = lax.conv_general_dilated(
        basis, kernel, strides, "SAME", dimension_numbers=numbers, precision=HIGHEST
    )
    return rows.reshape(inputs, -1)
