r"""Sandwich layer: $x \mapsto \sqrt2 A^T \Psi\, s(\sqrt2\, \Psi^{-1} B x + b)$ with $A A^T + B B^T = I$.

The solution of the SDP condition of `lipjax.layers.lmi` without a skip, with
$\Lambda = \Psi^2$; the condition is then met with equality. The stacked $[A^T; B^T]$ is any
contraction: the published layer makes it by the Cayley transform, `of_contraction` takes any other.
Together such layers reach every network that the condition proves to be 1-Lipschitz.

The convolution works at each frequency, so it is circular, for one image size.

Reference: Wang, Manchester (2023), https://arxiv.org/abs/2301.11526.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax._numerics import safe_norm
from lipjax.layers import _initializers, _parameters, _transfer, activations, cayley, forms
from lipjax.layers._convolution import add_bias, check_dtype
from lipjax.layers._transfer import Transfer
from lipjax.layers.forms import Linear
from lipjax.typing import Array, Bound

LARGEST_LOG_PSI = 8.0


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[m + n, m]` or `float[*window, m + n, m]`, the rows of A before those of B.
        bias: `float[m]`.
        scale: `float[]`, as in `lipjax.layers.cayley`.
        log_psi: `float[m]`, the logarithm of the diagonal of Psi, clipped to `+-8`.
    """

    kernel: Array
    bias: Array
    scale: Array
    log_psi: Array


class Sandwich(NamedTuple):
    """Weights of the layer.

    Attributes:
        kernel: `float[m + n, m]`, or `complex[height, width // 2 + 1, m + n, m]`: `[A^T; B^T]`, of
            norm at most 1.
        bias: `float[m]`.
        log_psi: `float[m]`.
    """

    kernel: Array
    bias: Array
    log_psi: Array


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """Xavier normal kernel, Psi = I and no bias.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (7, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    return _init(key, (in_features + out_features, out_features))


def init_conv(key: Array, in_features: int, out_features: int, *, kernel_size=3) -> Params:
    """As `init_dense`, for images.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4, 3).kernel.shape
    (3, 3, 7, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    window = _initializers.window(kernel_size, 2)
    return _init(key, (*window, in_features + out_features, out_features))


def constrain_dense(params: Params) -> Sandwich:
    """The weights of the layer.

    Guarantee: `A A^T + B B^T = I` up to rounding, about 1e-6; `bound` proves what these floats have.
    Finite gradients everywhere. NaN in gives NaN out.

    >>> import jax
    >>> a, b = halves(constrain_dense(init_dense(jax.random.key(0), 4, 3)))
    >>> a.shape, b.shape
    ((3, 3), (4, 3))
    """
    params = _parameters.of_dense(Params, params)
    weights = cayley.constrain_dense(cayley.Params(params.kernel, params.bias, params.scale))
    return of_contraction(weights, params.log_psi)


def constrain_conv(params: Params, *, input_size) -> Sandwich:
    """As `constrain_dense`, for images of that size, one integer or (height, width).

    >>> import jax
    >>> constrain_conv(init_conv(jax.random.key(0), 2, 2), input_size=4).kernel.shape
    (4, 3, 4, 2)
    """
    params = _parameters.of_conv(Params, params, 4)
    weights = cayley.constrain_conv(
        cayley.Params(params.kernel, params.bias, params.scale), input_size=input_size
    )
    return of_contraction(weights, params.log_psi)


def of_contraction(weights: Linear | Transfer, log_psi: Array | None = None) -> Sandwich:
    """The sandwich form of any contraction from `m + n` to m features.

    >>> import jax
    >>> from lipjax.layers import bjorck
    >>> contraction = bjorck.constrain_dense(bjorck.init_dense(jax.random.key(0), 7, 3))
    >>> apply_dense(of_contraction(contraction), jax.numpy.ones(4)).shape
    (3,)
    """
    if not isinstance(weights, Linear | Transfer):
        raise ValueError(
            f"weights is a {type(weights).__name__}; it must be what constrain_dense of a contraction "
            "returns, such as lipjax.layers.bjorck."
        )
    if isinstance(weights, Linear) and weights.kernel.ndim != 2:
        raise ValueError(
            f"weights has a kernel of shape {weights.kernel.shape}; a sandwich layer on images is made "
            "of a contraction with one matrix per frequency, such as cayley.constrain_conv makes; on "
            "vectors, of a matrix."
        )
    rows, cols = weights.kernel.shape[-2:]
    if rows <= cols:
        raise ValueError(
            f"weights has a kernel of shape {weights.kernel.shape}; a sandwich layer from n to m "
            "features is made of a contraction from m + n to m features."
        )
    log_psi = (
        jnp.zeros(cols, weights.bias.dtype) if log_psi is None else _checks.array(log_psi=log_psi)
    )
    if log_psi.shape != (cols,):
        raise ValueError(
            f"log_psi has shape {log_psi.shape}; it must have one number for each of {cols} units."
        )
    return Sandwich(weights.kernel, weights.bias, log_psi)


def apply_dense(weights: Sandwich, x: Array, *, activation="relu") -> Array:
    """The layer from `float[..., n]` to `float[..., m]`.

    Guarantee: 1-Lipschitz in l2 for weights from `constrain_dense`, up to the rounding of the
    evaluation. `activation` must have slopes in [0, 1]; others are refused.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> apply_dense(weights, jax.numpy.ones(4)).shape
    (3,)
    """
    forms.check_made(weights, Sandwich)
    upper, lower = halves(weights)
    x = _checks.array(x=x)
    _check_width(lower, x)
    hidden = _inside(weights, x @ lower, activation)
    return math.sqrt(2) * (hidden @ upper.T)


def apply_conv(weights: Sandwich, x: Array, *, activation="relu") -> Array:
    """The layer from `float[..., height, width, n]` to m channels, of the size it was made for.

    Guarantee: as `apply_dense`.
    """
    forms.check_made(weights, Sandwich)
    upper, lower = halves(weights)
    bias = weights.bias
    hidden = _inside(weights, _transfer.multiply(Transfer(jnp.conj(lower), bias), x), activation)
    back = Transfer(jnp.swapaxes(upper, -1, -2), bias)
    return math.sqrt(2) * _transfer.multiply(back, hidden)


def output_dense(weights: Sandwich, x: Array) -> Array:
    """The layer without its activation, `B x + b`: the last one of a network, for signed outputs.

    Guarantee: 1-Lipschitz as `apply_dense`; `output_bound` proves what these floats have.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> output_dense(weights, jnp.ones(4)).shape
    (3,)
    """
    forms.check_made(weights, Sandwich)
    _, lower = halves(weights)
    x = _checks.array(x=x)
    _check_width(lower, x)
    return add_bias(x @ lower, weights.bias)


def freeze_dense(params: Params) -> Sandwich:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(constrain_dense, params)


def freeze_conv(params: Params, *, input_size) -> Sandwich:
    """`constrain_conv` in float64 on the host, rounded: for evaluation."""
    return _transfer.frozen(functools.partial(constrain_conv, input_size=input_size), params)


def bound(weights: Sandwich) -> Bound:
    """Upper bound on the Lipschitz constant of `apply_dense` or `apply_conv` with these weights.

    The square of the norm of `[A^T; B^T]`, proved in float64 on the host: dividing A and B by that
    norm gives a 1-Lipschitz layer, whose input and output it then scales. `output_dense` multiplies
    with B alone; its bound is `output_bound`.

    Guarantee: at least the constant of the layer with exactly these floats and an activation that it
    takes; NaN or infinite weights give infinity.

    >>> import jax
    >>> bound(constrain_dense(init_dense(jax.random.key(0), 4, 3))).kind
    'upper'
    """
    forms.check_made(weights, Sandwich)
    norm = _transfer.norm_bound(weights.kernel)
    usable = bool(np.isfinite(np.asarray(weights.log_psi)).all())
    return forms.upper_bound(weights, norm * norm if usable else math.inf)


def output_bound(weights: Sandwich) -> Bound:
    """Upper bound on the Lipschitz constant of `output_dense` with these weights.

    Guarantee: as `bound`.

    The norm of B; the square of that of `[A^T; B^T]`, where this is below 1, can be smaller.

    >>> import jax.numpy as jnp
    >>> half = of_contraction(forms.linear(0.5 * jnp.eye(4, 2, -2), jnp.zeros(2)))
    >>> round(bound(half).value, 6), round(output_bound(half).value, 6)
    (0.25, 0.5)
    """
    forms.check_made(weights, Sandwich)
    _, lower = halves(weights)
    return forms.upper_bound(weights, _transfer.norm_bound(lower))


def halves(weights: Sandwich) -> tuple[Array, Array]:
    """`A^T` and `B^T` (for a convolution the conjugate transposes, at each frequency).

    >>> import jax
    >>> [part.shape for part in halves(constrain_dense(init_dense(jax.random.key(0), 4, 3)))]
    [(3, 3), (4, 3)]
    """
    outputs = weights.kernel.shape[-1]
    return weights.kernel[..., :outputs, :], weights.kernel[..., outputs:, :]


def _inside(weights, product, activation):
    """`Psi s(sqrt(2) Psi^-1 B x + b)`."""
    s = activations.slope_restricted(activation)
    scale = jnp.broadcast_to(psi(weights), product.shape)
    return scale * s(add_bias(math.sqrt(2) * product / scale, weights.bias))


def psi(weights: Sandwich) -> Array:
    """The diagonal of Psi, `float[m]`.

    >>> import jax
    >>> psi(constrain_dense(init_dense(jax.random.key(0), 4, 3))).shape
    (3,)
    """
    return jnp.exp(jnp.clip(weights.log_psi, -LARGEST_LOG_PSI, LARGEST_LOG_PSI))


def _check_width(lower, x):
    check_dtype(lower, x)
    if x.ndim < 1 or x.shape[-1] != lower.shape[-2]:
        raise ValueError(
            f"x has shape {x.shape}; its last axis must have length {lower.shape[-2]}, the features "
            "that the layer was made for."
        )


def _init(key, shape) -> Params:
    kernel = _initializers.xavier_normal(key, shape)
    outputs = shape[-1]
    return Params(kernel, jnp.zeros(outputs), safe_norm(kernel), jnp.zeros(outputs))
