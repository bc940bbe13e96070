r"""SDP-based Lipschitz layer: $x - 2\, s(x W + b)\, T^{-1} W^T$ with a weighted Gershgorin T.

$T = \mathrm{diag}\big(\sum_j |W^T W|_{ij}\, e^{q_j - q_i}\big)$, with the autocorrelation of the kernel
and a sum over its taps for convolutions. The weights q act (in a published implementation of the
convolution they cancel); for ReLU and other homogeneous activations they change the training and
not the set of functions.

Reference: Araujo, Havens, Delattre, Allauzen, Hu (2023), https://arxiv.org/abs/2303.03169.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import over_square, power_of_two, round_down, safe_reciprocal
from lipjax.layers import _initializers, _parameters, forms
from lipjax.layers.forms import Residual
from lipjax.spectral.rescaling import conv_dominating_diagonal, dominating_diagonal
from lipjax.typing import Array, Bound


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`.
        bias: `float[m]`.
        log_q: `float[m]`, logarithms of the Gershgorin weights.
    """

    kernel: Array
    bias: Array
    log_q: Array


def init_dense(key: Array, features: int, hidden: int, *, init: str = "default") -> Params:
    """Xavier normal kernel, uniform bias, and weights: for `float[..., features]`.

    Args:
        key: Random key.
        features: Width of input and output, n.
        hidden: Number of hidden units, m.
        init: `"default"`, equal weights (`log_q` 0): the row sums of AOL, which no draw decides. Or
            `"published"`, `log_q` standard normal. Fifteen layers of 64 features and 32 hidden units
            leave 0.21 and 0.28 of the standard deviation of their input.

    Returns:
        `kernel: float[n, m]`, `bias: float[m]`, `log_q: float[m]`.

    Raises:
        ValueError: for sizes that are none, another `init`, or what is no key.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 8).kernel.shape
    (4, 8)
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
        `kernel: float[*window, n, m]`, `bias: float[m]`, `log_q: float[m]`.

    >>> import jax
    >>> init_conv(jax.random.key(0), 2, 3).kernel.shape
    (3, 3, 2, 3)
    """
    window = _initializers.window(kernel_size, dims)
    _checks.integer(1, channels=channels, hidden=hidden)
    return _init(key, (*window, channels, hidden), init)


def constrain_dense(params: Params) -> Residual:
    """The weights of the layer.

    Guarantee: `diag(2 / step)` dominates `W^T W` in exact arithmetic for the returned floats, so
    that `apply_dense` is 1-Lipschitz. A column of zeros has step 0: its unit is switched off, with
    finite gradients. NaN in gives NaN out.

    >>> import jax, jax.numpy as jnp
    >>> params = Params(2 * jnp.eye(3), jnp.zeros(3), jnp.zeros(3))
    >>> constrain_dense(params).step.round(4).tolist()
    [0.5, 0.5, 0.5]
    """
    return _constrain(_parameters.of_dense(Params, params), dominating_diagonal)


def constrain_conv(params: Params) -> Residual:
    """As `constrain_dense`, for zero and circular padding and every input size.

    >>> import jax
    >>> constrain_conv(init_conv(jax.random.key(0), 2, 3)).step.shape
    (3,)
    """
    return _constrain(_parameters.of_conv(Params, params), conv_dominating_diagonal)


def apply_dense(weights: Residual, x: Array, *, activation="relu") -> Array:
    """The layer on `float[..., n]`; the width stays.

    Guarantee: 1-Lipschitz in l2 for weights from `constrain_dense`, up to the rounding of the
    evaluation. `activation` must have slopes in [0, 1]; others are refused.

    >>> import jax, jax.numpy as jnp
    >>> params = init_dense(jax.random.key(0), 4, 8)
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
    """`constrain_dense` in float64 on the host, rounded to the sound side: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 8))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(constrain_dense, params)


def freeze_conv(params: Params) -> Residual:
    """`constrain_conv` in float64 on the host, rounded to the sound side: for evaluation.

    >>> import jax
    >>> weights = freeze_conv(init_conv(jax.random.key(0), 2, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(constrain_conv, params)


def bound(weights: Residual) -> Bound:
    """Upper bound on the Lipschitz constant of the layer with these weights, proved in float64.

    Guarantee: at least the constant of the layer with exactly these floats, for the activations that
    `apply_dense` and `apply_conv` take and every size and padding; at least 1, and infinity for NaN or
    infinite weights.

    >>> import jax
    >>> bound(constrain_dense(init_dense(jax.random.key(0), 4, 8))).kind
    'upper'
    """
    return forms.residual_bound(weights)


def _init(key, shape, init) -> Params:
    _checks.one_of(_initializers.INITS, init=init)
    _checks.one_key(key=key)
    kernel_key, bias_key = jax.random.split(key)
    log_q = jnp.zeros(shape[-1])
    if init == "published":
        log_q = jax.random.normal(jax.random.fold_in(key, 2), log_q.shape)
    return Params(
        kernel=_initializers.xavier_normal(kernel_key, shape),
        bias=_initializers.uniform_bias(bias_key, shape),
        log_q=log_q,
    )


def _constrain(params, diagonal) -> Residual:
    scale = power_of_two(jnp.max(jnp.abs(params.kernel)))
    t = diagonal(params.kernel / scale, log_q=params.log_q)
    step = forms.representable(over_square(round_down(2 * safe_reciprocal(t), 2), scale))
    return Residual(params.kernel, params.bias, step, params.log_q)
