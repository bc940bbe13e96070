"""The last-layer-normalized head: each class vector has norm 1, each logit is 1-Lipschitz.

The map to all logits together is *not* 1-Lipschitz (its norm can reach the square root of the number
of classes), so certificates use the distances between class vectors: see `lipjax.margin.radius`
with `head=weights.kernel`.

Reference: Singla, Singla, Feizi (2022), https://arxiv.org/abs/2108.04062.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import power_of_two, safe_norm, safe_reciprocal
from lipjax.layers import _initializers, _parameters, forms
from lipjax.spectral.proved import proved_norm
from lipjax.typing import Array, Bound


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[features, classes]`.
        bias: `float[classes]`.
    """

    kernel: Array
    bias: Array


class Head(NamedTuple):
    """Weights of the layer.

    Attributes:
        kernel: `float[features, classes]`, with columns of norm 1.
        bias: `float[classes]`.
    """

    kernel: Array
    bias: Array


def init_dense(key: Array, in_features: int, num_classes: int) -> Params:
    """Uniform kernel and bias in `+-1 / sqrt(in_features)`.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    _checks.integer(1, in_features=in_features, num_classes=num_classes)
    _checks.one_key(key=key)
    kernel_key, bias_key = jax.random.split(key)
    shape = (in_features, num_classes)
    return Params(
        kernel=_initializers.uniform_kernel(kernel_key, shape),
        bias=_initializers.uniform_bias(bias_key, shape),
    )


def constrain_dense(params: Params) -> Head:
    """The weights: columns divided by their norms, up to rounding; zero columns stay zero.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs((weights.kernel**2).sum(0) - 1).max() < 1e-5)
    True
    """
    params = _parameters.of_dense(Params, params)
    largest = jnp.max(jnp.abs(params.kernel), axis=0, keepdims=True)
    kernel = params.kernel / jnp.broadcast_to(power_of_two(largest), params.kernel.shape)
    norms = safe_norm(kernel, axis=0, keepdims=True)
    return Head(kernel * jnp.broadcast_to(safe_reciprocal(norms), kernel.shape), params.bias)


def apply_dense(weights: Head, x: Array) -> Array:
    """Logits `float[..., classes]` of features `float[..., features]`.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> apply_dense(weights, jnp.ones(4)).shape
    (3,)
    """
    forms.check_made(weights, Head)
    return forms.affine(weights, x)


def freeze_dense(params: Params) -> Head:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(1 <= bound(weights).value <= 3**0.5 + 1e-6)
    True
    """
    return forms.frozen(constrain_dense, params)


def bound(weights: Head) -> Bound:
    """Upper bound on the Lipschitz constant of the map from features to all logits.

    Guarantee: at least the constant of exactly these floats, found in float64 on the host; NaN or
    infinite weights give infinity, zeros zero.

    Between 1 and the square root of the number of classes for columns of norm 1.

    >>> import jax.numpy as jnp
    >>> bound(constrain_dense(Params(jnp.eye(4, 3), jnp.zeros(3)))).kind
    'upper'
    """
    forms.check_made(weights, Head)
    return forms.upper_bound(weights, proved_norm(weights.kernel))
