r"""Convex potential layer: $x - \tfrac{2}{\sigma^2}\, s(x W + b)\, W^T$ with $\sigma \ge \|W\|$.

One explicit Euler step of the gradient flow of a convex potential, at the longest step for which
it does not expand. Published implementations estimate the norm by power iteration, which comes
from below and makes the step too long; here it is an upper bound.

Reference: Meunier, Delattre, Araujo, Allauzen (2022), https://arxiv.org/abs/2110.12690.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import over_square, power_of_two, round_down, safe_reciprocal
from lipjax.layers import _initializers, _parameters, forms
from lipjax.layers.forms import Residual
from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.gram import gram_iteration
from lipjax.typing import Array, Bound


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`.
        bias: `float[m]`.
    """

    kernel: Array
    bias: Array


def init_dense(key: Array, features: int, hidden: int, *, init: str = "default") -> Params:
    """Uniform kernel and bias in `+-1 / sqrt(fan_in)`, for `float[..., features]`.

    Args:
        key: Random key.
        features: Width of input and output, n.
        hidden: Number of hidden units, m.
        init: `"published"`, or `"default"`, which differs where `hidden` is above `features`. There
            `W W^T` of the published kernel is close to a multiple of the identity, half of the units
            are active, and each layer takes nearly all of the signal away: of its standard deviation
            fifteen layers leave 4e-5 at 64 features and 512 hidden units. The kernel of the default
            has the rank `features / 8`, which leaves 0.45. (Only the direction of the kernel matters.)

    Returns:
        `kernel: float[n, m]`, `bias: float[m]`.

    Raises:
        ValueError: for sizes that are none, another `init`, or what is no key.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    _checks.integer(1, features=features, hidden=hidden)
    return _init(key, (features, hidden), init)


def init_conv(
    key: Array,
    channels: int,
    hidden: int,
    *,
    kernel_size=3,
    dims: int = 2,
    init: str = "default",
) -> Params:
    """As `init_dense`, for `float[..., *spatial, channels]` with `dims` spatial axes.

    Returns:
        `kernel: float[*window, n, m]`, `bias: float[m]`.

    >>> import jax
    >>> init_conv(jax.random.key(0), 2, 3).kernel.shape
    (3, 3, 2, 3)
    """
    _checks.integer(1, channels=channels, hidden=hidden)
    window = _initializers.window(kernel_size, dims)
    return _init(key, (*window, channels, hidden), init)


def constrain_dense(params: Params, *, num_iters: int = 6, gradient: str = "norm") -> Residual:
    """The weights of the layer, with the norm bounded by `num_iters` Gram products.

    Guarantee: `2 / step` is at least the squared norm of the kernel in exact arithmetic for the
    returned floats. A zero kernel has step 0. NaN in gives NaN out. The gradient is that
    of the norm itself, which costs no further product and has no second derivative (asking for one
    is an error); `gradient="bound"` has, as in `gram_iteration`.

    >>> import jax.numpy as jnp
    >>> constrain_dense(Params(2 * jnp.eye(3), jnp.zeros(3))).step.round(4).tolist()
    [0.5, 0.5, 0.5]
    """
    params = _parameters.of_dense(Params, params)
    scale = power_of_two(jnp.max(jnp.abs(params.kernel)))
    norm = gram_iteration(params.kernel / scale, num_iters=num_iters, gradient=gradient)
    return _constrain(params, norm, scale)


def constrain_conv(
    params: Params,
    *,
    padding: str = "any",
    input_size: int | Sequence[int] | None = None,
    num_iters: int = 4,
    gradient: str = "norm",
) -> Residual:
    """As `constrain_dense`, with the norm of the convolution.

    `padding="any"` holds for zero and circular padding at every size. For `"zero"` or `"circular"`
    with an `input_size` the norm is a little smaller and valid there alone.

    >>> import jax.numpy as jnp
    >>> weights = constrain_conv(Params(jnp.full((1, 1, 1, 1), 2.0), jnp.zeros(1)))
    >>> weights.step.round(4).tolist()
    [0.5]
    """
    params = _parameters.of_conv(Params, params)
    scale = power_of_two(jnp.max(jnp.abs(params.kernel)))
    norm = conv_gram_iteration(
        params.kernel / scale,
        padding=padding,
        input_size=input_size,
        num_iters=num_iters,
        gradient=gradient,
    )
    return _constrain(params, norm, scale)


def apply_dense(weights: Residual, x: Array, *, activation="relu") -> Array:
    """The layer on `float[..., n]`; the width stays.

    Guarantee: 1-Lipschitz in l2 for weights from `constrain_dense`, up to the rounding of the
    evaluation. `activation` must have slopes in [0, 1]; others are refused.

    >>> import jax, jax.numpy as jnp
    >>> params = init_dense(jax.random.key(0), 4, 3)
    >>> apply_dense(constrain_dense(params), jnp.ones(4)).shape
    (4,)
    """
    return forms.residual_dense(weights, x, activation=activation)


def apply_conv(weights: Residual, x: Array, *, activation="relu", padding: str = "zero") -> Array:
    """The layer on `float[..., *spatial, n]`; guarantees as `apply_dense`.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 2, 3))
    >>> apply_conv(weights, jnp.ones((5, 5, 2))).shape
    (5, 5, 2)
    """
    return forms.residual_conv(weights, x, activation=activation, padding=padding)


def freeze_dense(params: Params) -> Residual:
    """`constrain_dense` in float64 on the host with more iterations: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(lambda p: constrain_dense(p, num_iters=10), params)


def freeze_conv(params: Params) -> Residual:
    """`constrain_conv` for every size, in float64 on the host: for evaluation."""
    return forms.frozen(lambda p: constrain_conv(p, num_iters=10), params)


def bound(weights: Residual) -> Bound:
    """Upper bound on the Lipschitz constant of the layer with these weights, proved in float64.

    Guarantee: at least the constant of the layer with exactly these floats, for the activations that
    `apply_dense` and `apply_conv` take and every size and padding; at least 1, and infinity for NaN or
    infinite weights.

    >>> import jax.numpy as jnp
    >>> bound(constrain_dense(Params(jnp.ones((3, 2)), jnp.zeros(2)))).kind
    'upper'
    """
    return forms.residual_bound(weights)


def _init(key, shape, init) -> Params:
    _checks.one_of(_initializers.INITS, init=init)
    _checks.one_key(key=key)
    wide = init == "default" and shape[-1] > shape[-2]
    make = _initializers.low_rank_kernel if wide else _initializers.uniform_kernel
    kernel_key, bias_key = jax.random.split(key)
    return Params(
        kernel=make(kernel_key, shape),
        bias=_initializers.uniform_bias(bias_key, shape),
    )


def _constrain(params, norm, scale) -> Residual:
    inverse = safe_reciprocal(norm)
    step = forms.representable(over_square(round_down(2 * inverse * inverse, 6), scale))
    hidden = params.kernel.shape[-1]
    witness = jnp.zeros(hidden, params.kernel.dtype)
    return Residual(params.kernel, params.bias, jnp.broadcast_to(step, (hidden,)), witness)
