r"""The SDP condition behind every layer, as a matrix whose smallest eigenvalue is the proof.

A layer $h(x) = H x + G\, s(W^T x + b)$ with an activation of slopes in [0, 1] on each entry is
1-Lipschitz if there is a diagonal $\Lambda \succeq 0$ with

$$ \begin{pmatrix} I - H^T H & -H^T G - W \Lambda \\\\
   -G^T H - \Lambda W^T & 2 \Lambda - G^T G \end{pmatrix} \succeq 0. $$

Multiply it by the change of the input and of the activation: the slope condition
$\Delta s^T \Lambda (W^T \Delta x - \Delta s) \ge 0$ turns it into
$\|h(x + \Delta x) - h(x)\| \le \|\Delta x\|$.

Reference: Araujo et al. (2023), https://arxiv.org/abs/2303.03169, after LipSDP (Fazlyab et al. 2019,
https://arxiv.org/abs/1906.04893).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import matmul
from lipjax.layers._convolution import convolve
from lipjax.layers.forms import Residual
from lipjax.typing import Array


class Matrices(NamedTuple):
    """A layer as matrices on column vectors.

    Attributes:
        skip: `float[d, n]`, the H.
        outer: `float[d, m]`, the G.
        inner: `float[n, m]`, the W.
        multiplier: `float[m]`, the diagonal of Lambda.
    """

    skip: Array
    outer: Array
    inner: Array
    multiplier: Array


def residual(skip: Array, outer: Array, inner: Array, multiplier: Array) -> Array:
    """The matrix of the condition, `float[n + m, n + m]`, symmetric.

    Its smallest eigenvalue is at least 0 (up to rounding) exactly when `multiplier` proves that
    the layer is 1-Lipschitz for every admissible activation. Meant for float64 and small layers.

    Args:
        skip, outer, inner, multiplier: as in `Matrices`; `residual(*matrices)` works.

    Raises:
        ValueError: for shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> reflect = residual(jnp.eye(2), -2 * jnp.eye(2), jnp.eye(2), 2 * jnp.ones(2))
    >>> float(jnp.linalg.eigvalsh(reflect).min()) >= -1e-6
    True
    """
    _checks.ranked(2, skip=skip, outer=outer, inner=inner)
    _checks.ranked(1, multiplier=multiplier)
    (n, m), d = inner.shape, outer.shape[0]
    _checks.axis_size(0, m, "one per hidden unit of inner", multiplier=multiplier)
    _checks.axis_size(1, m, "the hidden units of inner", outer=outer)
    _checks.axis_size(1, n, "the inputs of inner", skip=skip)
    _checks.axis_size(0, d, "the outputs of outer", skip=skip)
    corner = -matmul(skip.T, outer) - inner * jnp.broadcast_to(multiplier, inner.shape)
    first = jnp.eye(n, dtype=inner.dtype) - matmul(skip.T, skip)
    last = 2 * jnp.diag(multiplier) - matmul(outer.T, outer)
    return jnp.block([[first, corner], [corner.T, last]])


def of_dense(weights: Residual) -> Matrices:
    """The matrices of a dense residual layer (SLL, CPL)."""
    _checks_residual(weights)
    _checks.ranked(2, "[n, m]; use of_conv for a convolution", kernel=weights.kernel)
    n, _ = weights.kernel.shape
    return _identity_skip(n, weights.kernel, weights.step)


def of_conv(
    weights: Residual, input_size: int | Sequence[int], *, padding: str = "zero"
) -> Matrices:
    """The matrices of a convolutional residual layer on whole images, written out.

    Only for small images: the inner matrix has `points * c_in` rows and `points * m` columns.
    """
    _checks_residual(weights)
    _checks.ranked((3, 4, 5), "[*window, n, m]; use of_dense for a matrix", kernel=weights.kernel)
    dims = weights.kernel.ndim - 2
    size = (input_size,) * dims if isinstance(input_size, int) else tuple(input_size)
    c_in, m = weights.kernel.shape[-2:]
    points = 1
    for n in size:
        points *= n
    basis = jnp.eye(points * c_in, dtype=weights.kernel.dtype).reshape(-1, *size, c_in)
    inner = convolve(basis, weights.kernel, padding=padding).reshape(points * c_in, points * m)
    return _identity_skip(points * c_in, inner, jnp.tile(weights.step, points))


def _checks_residual(weights):
    if not isinstance(weights, Residual):
        raise ValueError(
            f"weights is a {type(weights).__name__}; it must be the Residual that constrain or freeze "
            "of SLL and CPL returns. Other layers: residual(skip, outer, inner, multiplier)."
        )


def _identity_skip(n, inner, step):
    """`x - W step s(W^T x + b)`, proved by `Lambda = 2 T^-1 = step`."""
    outer = -inner * jnp.broadcast_to(step, inner.shape)
    return Matrices(jnp.eye(n, dtype=inner.dtype), outer, inner, step)
