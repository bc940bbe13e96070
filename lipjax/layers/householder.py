r"""Products of Householder reflections, $Q = (I - 2 v_1 v_1^T) \cdots (I - 2 v_k v_k^T)$, $|v_i| = 1$.

Computed at once as $Q = I - V T V^T$ with $T^{-1} = \tfrac12 I + \mathrm{striu}(V^T V)$, by matrix
products and one triangular solution, where a loop would take k steps. With k = n reflections every
orthogonal matrix of determinant $(-1)^n$ is reached.

Reference: Mhammedi et al. (2017), https://arxiv.org/abs/1612.00188; the compact form is that of
Joffrain et al. (2006), https://doi.org/10.1145/1141885.1141886.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import matmul, power_of_two, safe_norm, safe_reciprocal
from lipjax.layers import _parameters, forms
from lipjax.layers._explicit import inverse_upper, straightened, upright
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_bound as bound
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.typing import Array

__all__ = ["Params", "apply_dense", "bound", "constrain_dense", "freeze_dense", "init_dense"]


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[max(n, m), k]`, the vectors of the reflections as columns; their lengths do
            not matter, and a zero column reflects nothing.
        bias: `float[m]`.
        inputs: `float[n, 0]`, empty: its shape says how many inputs there are.
    """

    kernel: Array
    bias: Array
    inputs: Array


def init_dense(
    key: Array, in_features: int, out_features: int, *, num_reflections: int | None = None
) -> Params:
    """Random reflections, `max(in_features, out_features)` of them unless said otherwise.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 4)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    _checks.one_key(key=key)
    size = max(in_features, out_features)
    count = size if num_reflections is None else num_reflections
    _checks.integer(1, num_reflections=count)
    kernel = jax.random.normal(key, (size, count))
    return Params(kernel, jnp.zeros(out_features), jnp.zeros((in_features, 0)))


def constrain_dense(params: Params) -> Linear:
    """The weights of the layer: the first rows or columns of the product of the reflections.

    Guarantee: norm 1 up to rounding, about 1e-6 (below 1e-5 for a thousand rows);
    `bound` proves what these floats have. Finite gradients everywhere, zero vectors
    included. NaN in gives NaN out.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(3)).max() < 1e-5)
    True
    """
    params = _parameters.of_dense(Params, params, outputs=None)
    rows, cols = params.inputs.shape[0], params.bias.shape[0]
    size = max(rows, cols)
    _checks.axis_size(0, size, "the larger width", **{"params.kernel": params.kernel})
    v = params.kernel
    largest = power_of_two(jnp.max(jnp.abs(v), axis=0, keepdims=True))
    v = v / jnp.broadcast_to(largest, v.shape)
    v = v * jnp.broadcast_to(safe_reciprocal(safe_norm(v, axis=0, keepdims=True)), v.shape)
    upper = jnp.triu(matmul(v.T, v), 1) + 0.5 * jnp.eye(v.shape[1], dtype=v.dtype)
    solved = matmul(inverse_upper(upper), v[:cols].T)
    kernel = jnp.eye(rows, cols, dtype=v.dtype) - matmul(v[:rows], solved)
    # Rounding is multiplied by the condition of the factor, to 2e-4 for 1000 reflections.
    return forms.linear(upright(straightened, kernel), params.bias)


def freeze_dense(params: Params) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(constrain_dense, params)
