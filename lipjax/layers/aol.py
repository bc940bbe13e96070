"""Almost-orthogonal layer: a kernel rescaled by the row sums of its Gram matrix.

`A = W diag(d)` with `d_i = (sum_j |W^T W|_ij)^(-1/2)`, or `A = diag(d) W` with the Gram matrix `W W^T`
of the inputs, which is the published side; by default the smaller of the two (and the outputs of a
square kernel). The norm is at most 1, and A is W if its columns, or rows, are orthonormal.

Reference: Prach, Lampert (2022), https://arxiv.org/abs/2208.03160.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from lipjax import _checks
from lipjax.layers import _initializers, _parameters, forms
from lipjax.layers.forms import Linear
from lipjax.spectral.rescaling import (
    conv_dominating_diagonal,
    conv_rescale,
    dominating_diagonal,
    rescale,
)
from lipjax.typing import Array, Bound


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`.
        bias: `float[m]`.
    """

    kernel: Array
    bias: Array


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """An isometry: the identity, or random orthonormal columns or rows for unequal widths.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    return _init(key, (in_features, out_features))


def init_conv(
    key: Array, in_features: int, out_features: int, *, kernel_size=3, dims: int = 2
) -> Params:
    """As `init_dense`, at the central tap, for `dims` spatial axes.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4, 3).kernel.shape
    (3, 3, 4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    window = _initializers.window(kernel_size, dims)
    return _init(key, (*window, in_features, out_features))


def constrain_dense(params: Params, *, side: str = "auto") -> Linear:
    """The weights of the layer; `side` as in `lipjax.spectral.rescale`.

    Guarantee: the kernel returned has norm at most 1 in exact arithmetic. Zero columns stay zero,
    with finite gradients. NaN in gives NaN out.

    >>> import jax.numpy as jnp
    >>> constrain_dense(Params(2 * jnp.eye(3), jnp.zeros(3))).kernel.round(4).tolist()[0]
    [1.0, 0.0, 0.0]
    """
    params = _parameters.of_dense(Params, params)
    kernel = rescale(params.kernel, side=side)
    return Linear(kernel, params.bias, forms.witness(params.kernel, dominating_diagonal, side))


def constrain_conv(params: Params, *, side: str = "auto") -> Linear:
    """As `constrain_dense`, for zero and circular padding, every stride and input size.

    >>> import jax.numpy as jnp
    >>> weights = constrain_conv(Params(jnp.full((1, 1, 1, 1), 4.0), jnp.zeros(1)))
    >>> weights.kernel.round(4).item()
    1.0
    """
    params = _parameters.of_conv(Params, params)
    kernel = conv_rescale(params.kernel, side=side)
    return Linear(kernel, params.bias, forms.witness(params.kernel, conv_dominating_diagonal, side))


def apply_dense(weights: Linear, x: Array) -> Array:
    """The layer on `float[..., n]`, 1-Lipschitz up to the rounding of the evaluation.

    >>> import jax, jax.numpy as jnp
    >>> params = init_dense(jax.random.key(0), 4, 3)
    >>> apply_dense(constrain_dense(params), jnp.ones(4)).shape
    (3,)
    """
    return forms.linear_dense(weights, x)


def apply_conv(weights: Linear, x: Array, *, padding: str = "zero", strides=1) -> Array:
    """The layer on `float[..., *spatial, n]`, 1-Lipschitz up to the rounding of the evaluation.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 2, 3))
    >>> apply_conv(weights, jnp.ones((5, 5, 2))).shape
    (5, 5, 3)
    """
    return forms.linear_conv(weights, x, padding=padding, strides=strides)


def freeze_dense(params: Params, *, side: str = "auto") -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(functools.partial(constrain_dense, side=side), params)


def freeze_conv(params: Params, *, side: str = "auto") -> Linear:
    """`constrain_conv` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(functools.partial(constrain_conv, side=side), params)


def bound(weights: Linear) -> Bound:
    """Upper bound on the Lipschitz constant of the layer with these weights, proved in float64.

    Guarantee: at least the constant of the layer with exactly these floats, for every size, stride and
    padding that `apply_conv` takes; a zero kernel nearly zero, NaN or infinite weights infinity.

    >>> import jax.numpy as jnp
    >>> bound(constrain_dense(Params(jnp.ones((3, 2)), jnp.zeros(2)))).kind
    'upper'
    """
    return forms.linear_bound(weights)


def _init(key, shape) -> Params:
    kernel = _initializers.identity_or_orthogonal(key, shape)
    return Params(kernel=kernel, bias=jnp.zeros(shape[-1]))
