r"""Orthonormal columns from a triangular factor: QR and Cholesky.

* `method="qr"`: $W = Q R$ with a positive diagonal of R. Exactly orthonormal; the gradient grows like
  $1 / R_{ii}$ and is limited where a column depends on those before it.
* `method="cholesky"`: $A = W L^{-T}$ with $L L^T = W^T W + \varepsilon\,\mathrm{mean}(\mathrm{diag}) I$.
  Then $A^T A = I - \varepsilon' L^{-1} L^{-T} \preceq I$: a little contractive, smooth, and cheaper.

Reference: the Cholesky form is that of Hu et al. (2023), https://arxiv.org/abs/2301.12549.
"""

import functools

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import matmul
from lipjax.layers import _parameters, forms
from lipjax.layers._explicit import (
    Params,
    inverse_upper,
    isometric,
    leading_one,
    one_by_one,
    straightened,
    upright,
    whitened,
)
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_bound as bound
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.typing import Array

__all__ = ["Params", "apply_dense", "bound", "constrain_dense", "freeze_dense", "init_dense"]

EPS = 1e-3
"""The epsilon of the Cholesky form in the reference."""


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """An isometry: the identity, or random orthonormal columns or rows for unequal widths.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    return isometric(key, in_features, out_features)


def constrain_dense(params: Params, *, method: str = "qr") -> Linear:
    """The weights of the layer, by `"qr"` or `"cholesky"`.

    Guarantee: norm at most 1 up to rounding, about 1e-6 (below 1e-5 for a thousand rows);
    `bound` proves what these floats have. Finite gradients everywhere, also for kernels without
    full rank. NaN in gives NaN out.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(3)).max() < 1e-5)
    True
    """
    _checks.one_of(("qr", "cholesky"), method=method)
    params = _parameters.of_dense(Params, params)
    make = _unrounded if method == "qr" else functools.partial(whitened, eps=EPS)
    return forms.linear(upright(make, leading_one(params.kernel)), params.bias)


def freeze_dense(params: Params, *, method: str = "qr") -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(functools.partial(constrain_dense, method=method), params)


def _unrounded(w):
    """Orthonormal columns, without the rounding of QR: 1e-5 for 1000 columns."""
    return straightened(_orthonormal(w)[0])


@jax.custom_jvp
def _orthonormal(w):
    """Q and R with a positive diagonal."""
    q, r = _qr(w)
    q = jnp.where(jnp.isfinite(w).all(), q, jnp.nan)  # LAPACK may leave a NaN out
    sign = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(w.dtype)
    return q * jnp.broadcast_to(sign, q.shape), r * jnp.broadcast_to(sign[:, None], r.shape)


@_orthonormal.defjvp
def _orthonormal_jvp(primals, tangents):
    (w,), (dw,) = primals, tangents
    q, r = _orthonormal(w)  # itself, so that the rule can be differentiated again
    diagonal = jnp.diagonal(r)
    least = 1e-6 * jnp.maximum(jnp.max(jnp.abs(diagonal)), 1e-6)
    missing = jnp.maximum(least - diagonal, 0)  # R has a diagonal of at least 0
    moved = matmul(dw, inverse_upper(r + jnp.diag(missing)))
    inside = matmul(q.T, moved)
    below = jnp.tril(inside, -1)
    turn = below - below.T  # skew: dQ lies along the orthonormal matrices
    return (q, r), (moved + matmul(q, turn - inside), jnp.triu(matmul(inside - turn, r)))


@one_by_one
def _qr(w):
    return tuple(jnp.linalg.qr(w))
