"""What contractions share that end in a plain kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import einsum, matmul, power_of_two
from lipjax.layers import _initializers
from lipjax.typing import Array


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`.
        bias: `float[m]`.
    """

    kernel: Array
    bias: Array


def isometric(key, in_features: int, out_features: int, window=()) -> Params:
    """The identity, or random orthonormal columns or rows for unequal widths; no bias."""
    _checks.integer(1, in_features=in_features, out_features=out_features)
    kernel = _initializers.identity_or_orthogonal(key, (*window, in_features, out_features))
    return Params(kernel, jnp.zeros(out_features))


def leading_one(kernel):
    """The kernel with its largest entry between 1 and 2, exactly; zero and NaN as they are."""
    kernel = jnp.asarray(kernel)
    return kernel / power_of_two(jnp.max(jnp.abs(kernel)))


def upright(make, kernel):
    """`make` of the kernel, or of its transpose when that has fewer columns."""
    if kernel.shape[-2] >= kernel.shape[-1]:
        return make(kernel)
    return jnp.swapaxes(make(jnp.swapaxes(kernel, -1, -2)), -1, -2)


def adjoint(x):
    """The conjugate transpose of the last two axes."""
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def whitened(v, eps: float):
    """`V L^-*` with `L L^* = V^* V + eps mean(diag) I`: of norm at most 1, near 1 unless V is small."""
    gram = matmul(adjoint(v), v)
    cols = v.shape[-1]
    # Where the kernel is zero any positive number will do; the factor must exist.
    damping = (eps * einsum("...ii->...", gram).real / cols + 1e-12).astype(v.dtype)
    eye = jnp.broadcast_to(jnp.eye(cols, dtype=v.dtype), gram.shape)
    lower = jnp.linalg.cholesky(gram + eye * damping[..., None, None])
    return adjoint(jax.lax.linalg.triangular_solve(lower, adjoint(v), left_side=True, lower=True))


def bjorck_step(w):
    """`(3 W - W W^* W) / 2` for at least as many rows as columns: norms up to 2 become at most 1."""
    return 1.5 * w - 0.5 * matmul(w, matmul(adjoint(w), w))
