r"""Spectral norms to ten digits or more, proved by a Cholesky factorization that does not break down.

Gram iteration is a bound after every product, differentiable and fast; it takes many products to come
close on a nearly flat spectrum. Once the weights are final there is time for more: the largest
eigenvalue of $G = W^* W$ is estimated by LAPACK, and that $t I - G$ is positive semidefinite for a
slightly larger t is proved by factorizing it, since a factorization that runs to its end in floating
point shows that the matrix is positive definite up to a known rounding error.

Reference: Rump (2006), Verification of positive definiteness, https://doi.org/10.1007/s10543-006-0056-1.
"""

import math

import jax
import numpy as np

from lipjax import _checks
from lipjax._numerics import gamma

SLACKS = (1e-15, 1e-14, 1e-13, 1e-12, 1e-10, 1e-8, 1e-6)


def proved_norm(matrix) -> np.ndarray:
    """Upper bound on spectral norms in float64 on the host, about `1e-13 n` above them.

    Args:
        matrix: `float or complex[..., n, m]`; not under jit.

    Returns:
        NumPy `float64[...]`.

    Guarantee: at least the spectral norm of the numbers passed in, float32 or float64, rounding
    included. Zero gives zero; NaN and infinities give infinity. Numbers whose squares leave the range
    beside the largest one count for what they can add at most.

    Raises:
        ValueError: for a wrong rank or dtype, an axis of length 0, or under jit.

    Example:
        >>> import numpy as np
        >>> float(proved_norm(np.diag([3.0, 4.0]))) - 4.0 < 1e-12
        True
    """
    if isinstance(matrix, jax.core.Tracer):
        raise ValueError("matrix is traced; proved_norm runs on the host, call it outside of jit.")
    matrix = np.asarray(jax.device_get(matrix))
    _checks.at_least_rank(2, "[..., n, m]", matrix=matrix)
    _checks.nonempty(matrix=matrix)
    matrix = matrix.astype(matrix.dtype.newbyteorder("="))
    if matrix.dtype not in (np.float32, np.float64, np.complex64, np.complex128):
        raise ValueError(
            f"matrix has dtype {matrix.dtype}; it must be float32, float64, complex64 or complex128."
        )
    matrix = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = np.conj(np.swapaxes(matrix, -1, -2))
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    return np.array([_norm(one) for one in flat]).reshape(matrix.shape[:-2])


def _norm(w) -> float:
    """The bound for one matrix with at least as many rows as columns."""
    largest = float(np.maximum(np.abs(w.real), np.abs(w.imag)).max())
    if not math.isfinite(largest):
        return math.inf
    if largest == 0:
        return 0.0
    exponent = math.frexp(largest)[1]
    w = _times_power(w, -exponent)
    rows, cols = w.shape
    gram = np.conj(w.T) @ w
    frobenius = float(np.square(np.abs(w)).sum()) * (1 + 1e-9)
    # Products of complex numbers round a little more, hence the 8; underflow is below 1e-300.
    rounding = gamma(rows + 8, np.float64) * frobenius + rows * cols * 1e-300
    guess = float(np.linalg.eigvalsh(gram)[-1])
    eye = np.eye(cols)
    for slack in SLACKS:
        t = max(guess, 0.0) * (1 + slack * cols) + 1e-290
        shifted = t * eye - gram
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
        trace = cols * t  # of the shifted matrix, at most
        proof = 2 * gamma(cols + 8, np.float64) * trace + rounding
        return _root(t + proof, exponent)
    return _root(frobenius, exponent)


def _root(square, exponent) -> float:
    """At least `sqrt(square) 2^exponent`, also where that is subnormal."""
    return math.nextafter(_times_power(math.sqrt(square) * (1 + 1e-15), exponent), math.inf)


def _times_power(x, exponent):
    """`x 2^exponent` in two steps, since the power itself may leave the range."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)
