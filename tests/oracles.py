"""Exact answers in float64, by the plainest means, for tests alone."""

import jax
import numpy as np
from jax import lax


def singular_values(matrix):
    """Singular values of the exact numbers of `matrix`, in float64."""
    dtype = np.complex128 if np.iscomplexobj(matrix) else np.float64
    return np.linalg.svd(np.asarray(matrix).astype(dtype), compute_uv=False)


def norm(matrix):
    """The spectral norm in float64."""
    return float(singular_values(matrix).max())


def conv_matrix(kernel, size, *, padding, strides=1, dilation=1, groups=1):
    """The matrix `float64[inputs, outputs]` of a convolution, applied to each unit image.

    `padding` is `"circular"`, `"zero"` (SAME), `"valid"`, `"full"` or pairs `(low, high)`.
    """
    kernel = np.asarray(kernel, np.float64)
    dims = kernel.ndim - 2
    size, strides, dilation = (
        (v,) * dims if isinstance(v, int) else tuple(v) for v in (size, strides, dilation)
    )
    c_in = kernel.shape[-2] * groups
    inputs = int(np.prod(size)) * c_in
    basis = np.eye(inputs).reshape(inputs, *size, c_in)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape)]
    if padding == "circular":
        wide = [(0, 0)] + [(0, r) for r in reach] + [(0, 0)]
        basis, padding = np.pad(basis, wide, mode="wrap"), "VALID"
    elif padding in ("zero", "valid"):
        padding = {"zero": "SAME", "valid": "VALID"}[padding]
    elif padding == "full":
        padding = [(r, r) for r in reach]
    spatial = "DHW"[-dims:]
    with jax.enable_x64(True):
        rows = lax.conv_general_dilated(
            jax.numpy.asarray(basis),
            jax.numpy.asarray(kernel),
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=groups,
            precision=lax.Precision.HIGHEST,
        )
        return np.asarray(rows).reshape(inputs, -1)


def dominates(diagonal, gram):
    """Smallest eigenvalue of `diag(diagonal) - gram`, relative to the largest entry."""
    diagonal, gram = np.asarray(diagonal, np.float64), np.asarray(gram)
    gap = np.diag(diagonal) - gram
    return float(np.linalg.eigvalsh(gap).min() / max(diagonal.max(), np.finfo(float).tiny))
