r"""Cayley transform: orthonormal columns from any matrix, dense or for every frequency of an image.

With the square part U and the rest V of the rows, $A = U - U^* + V^* V$ and
$Q = [(I + A)^{-1} (I - A);\; -2 V (I + A)^{-1}]$ has $Q^* Q = I$. The inverse always exists, since the
Hermitian part of $I + A$ is at least I. Square real results are rotations (determinant 1).

The convolution applies it to the symbol at each frequency, so it is circular, for one image size,
and the resulting filter is as large as the image.

Reference: Trockman, Kolter (2021), https://arxiv.org/abs/2104.07167.
"""

from typing import NamedTuple

import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import matmul, safe_norm, safe_reciprocal
from lipjax.layers import _initializers, _parameters, _transfer, forms
from lipjax.layers._explicit import adjoint, gram, inverse, leading_one, straightened, upright
from lipjax.layers._transfer import Transfer
from lipjax.layers._transfer import apply as apply_conv
from lipjax.layers._transfer import multiply as linear_conv
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.typing import Array, Bound

__all__ = [
    "Params", "apply_conv", "apply_dense", "bound", "constrain_conv",
    "constrain_dense", "freeze_conv", "freeze_dense", "init_conv", "init_dense", "linear_conv",
    "transform",
]  # fmt: skip


LARGEST_SCALE = 1000.0


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`; only its direction matters.
        bias: `float[m]`.
        scale: `float[]`, the Frobenius norm that the kernel is given, clipped to `+-1000`. Large ones
            make the inverse ill-conditioned, and the result less orthogonal (still a contraction).
    """

    kernel: Array
    bias: Array
    scale: Array


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """Uniform kernel in `+-1 / sqrt(in_features)`, as published.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    return _init(key, (in_features, out_features))


def init_conv(key: Array, in_features: int, out_features: int, *, kernel_size=3) -> Params:
    """Uniform kernel in `+-1 / sqrt(fan_in)`, for images.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4, 3).kernel.shape
    (3, 3, 4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    return _init(key, (*_initializers.window(kernel_size, 2), in_features, out_features))


def constrain_dense(params: Params) -> Linear:
    """The weights of the layer, with orthonormal columns (rows if there are fewer).

    Guarantee: norm at most 1 up to rounding, about 1e-6 (below 1e-5 for a thousand
    rows); `bound` proves what these floats have. A zero kernel gives the identity, cut to
    shape. Finite gradients everywhere. NaN in gives NaN out.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(3)).max() < 1e-5)
    True
    """
    params = _parameters.of_dense(Params, params)
    return forms.linear(upright(_transformed, _scaled(params)), params.bias)


def constrain_conv(params: Params, *, input_size) -> Transfer:
    """The weights of the convolution for images of that size, one integer or (height, width).

    Guarantee: circular convolution of norm 1 up to rounding, as `constrain_dense`.
    """
    params = _parameters.of_conv(Params, params, 4)
    symbol = _transfer.symbol(_scaled(params), input_size)
    return Transfer(upright(_transformed, symbol), params.bias)


def freeze_dense(params: Params) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(constrain_dense, params)


def freeze_conv(params: Params, *, input_size) -> Transfer:
    """`constrain_conv` in float64 on the host, rounded: for evaluation."""
    return _transfer.frozen(lambda p: constrain_conv(p, input_size=input_size), params)


def bound(weights: Linear | Transfer) -> Bound:
    """Upper bound on the Lipschitz constant with these weights, proved in float64 on the host.

    Guarantee: at least the constant of the layer with exactly these floats, of a convolution at the size
    that its frequencies are of; NaN or infinite weights give infinity.

    >>> import jax
    >>> bound(constrain_dense(init_dense(jax.random.key(0), 4, 3))).kind
    'upper'
    """
    return (
        _transfer.bound(weights) if isinstance(weights, Transfer) else forms.linear_bound(weights)
    )


def transform(matrix: Array) -> Array:
    """The Cayley transform of `[..., n, m]`, n at least m, real or complex: orthonormal columns.

    >>> import jax.numpy as jnp
    >>> transform(jnp.zeros((3, 2))).tolist()
    [[1.0, 0.0], [0.0, 1.0], [-0.0, -0.0]]
    """
    _checks.floating(matrix=matrix)
    _checks.at_least_rank(2, "[..., n, m]", matrix=matrix)
    rows, cols = matrix.shape[-2:]
    if rows < cols:
        raise ValueError(
            f"matrix has shape {matrix.shape}; it must have at least as many rows as columns."
        )
    u, v = matrix[..., :cols, :], matrix[..., cols:, :]
    skew = u - adjoint(u) + gram(v)
    eye = jnp.broadcast_to(jnp.eye(cols, dtype=matrix.dtype), skew.shape)
    solved = inverse(eye + skew)
    return jnp.concatenate([2 * solved - eye, -2 * matmul(v, solved)], axis=-2)


def _transformed(matrix):
    """The transform, and a step that takes off its rounding, which grows with the scale."""
    return straightened(transform(matrix))


def _init(key, shape) -> Params:
    kernel = _initializers.uniform_kernel(key, shape)
    return Params(kernel, jnp.zeros(shape[-1]), safe_norm(kernel))


def _scaled(params):
    kernel = leading_one(params.kernel)
    scale = jnp.clip(params.scale, -LARGEST_SCALE, LARGEST_SCALE)
    return kernel * (scale * safe_reciprocal(safe_norm(kernel)))
