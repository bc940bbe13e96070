r"""The forms of a 1-Lipschitz layer: what a weight of norm at most 1 can be used in.

* Linear: $x \mapsto x A + b$ with $\|A\| \le 1$.
* Residual: $x \mapsto x - 2\, s(x W + b)\, T^{-1} W^T$ with a positive diagonal
  $T \succeq W^T W$ and an activation $s$ on each entry alone with slopes in [0, 1].

The residual form is the solution of the SDP condition of `lipjax.layers.lmi` with identity skip.
With $A = W T^{-1/2}$ it is the same statement: $\|A\| \le 1$ (Meunier et al. 2022,
https://arxiv.org/abs/2110.12690; Araujo et al. 2023, https://arxiv.org/abs/2303.03169). So every
contraction makes a residual layer: `as_residual` for kernels, `residual_of` for any linear map. The
sandwich form is in `lipjax.layers.sandwich`.

Products run at the precision that `jax.default_matmul_precision` names. On GPUs and TPUs the default
rounds float32 operands, which is fine for training; evaluate certificates inside
`jax.default_matmul_precision("highest")`, so that the layer multiplies with the floats whose bound
was proved.

Weights carry a witness, `log_q`: weights of the diagonal dominance that proves them. From it
`*_bound` recomputes the proof in float64 for the very floats that the layer multiplies with.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks, _numerics
from lipjax.layers import activations
from lipjax.layers._convolution import add_bias, adjoint, check_dtype, convolve
from lipjax.layers._witnessed import squared_norm
from lipjax.spectral.rescaling import on_rows
from lipjax.typing import Array, Bound


class Linear(NamedTuple):
    """Weights of the linear form.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`, of norm at most 1.
        bias: `float[m]`.
        log_q: `float[n]` or `float[m]`, the witness, of the side that was scaled.

    >>> import jax.numpy as jnp
    >>> Linear(jnp.eye(2), jnp.zeros(2), jnp.zeros(2)).kernel.shape
    (2, 2)
    """

    kernel: Array
    bias: Array
    log_q: Array


class Residual(NamedTuple):
    """Weights of the residual form.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`, the W.
        bias: `float[m]`.
        step: `float[m]`, the diagonal of `2 T^-1`.
        log_q: `float[m]`, the witness.
    """

    kernel: Array
    bias: Array
    step: Array
    log_q: Array


def linear_dense(weights: Linear, x: Array) -> Array:
    """`x A + b` for `float[..., n]`.

    >>> import jax.numpy as jnp
    >>> layer = linear(jnp.array([[1.0], [2.0]]), jnp.array([0.5]))
    >>> linear_dense(layer, jnp.array([1.0, 1.0])).tolist()
    [3.5]
    """
    return add_bias(product_dense(weights, x), weights.bias)


def product_dense(weights: Linear, x: Array) -> Array:
    """`x A` for `float[..., n]`.

    >>> import jax.numpy as jnp
    >>> layer = linear(jnp.array([[1.0], [2.0]]), jnp.array([0.5]))
    >>> product_dense(layer, jnp.array([1.0, 1.0])).tolist()
    [3.0]
    """
    check_made(weights, Linear)
    x = _checks.array(x=x)
    _check_width(weights.kernel, x)
    return x @ weights.kernel


def affine(weights, x: Array) -> Array:
    """`x kernel + bias` for `float[..., n]`, whatever the norm of the kernel.

    >>> import jax.numpy as jnp
    >>> layer = linear(jnp.array([[1.0], [2.0]]), jnp.array([0.5]))
    >>> affine(layer, jnp.array([1.0, 1.0])).tolist()
    [3.5]
    """
    x = _checks.array(x=x)
    _check_width(weights.kernel, x)
    return add_bias(x @ weights.kernel, weights.bias)


def linear_conv(weights: Linear, x: Array, *, padding: str = "zero", strides=1) -> Array:
    """`A * x + b` for `float[..., *spatial, n]`.

    >>> import jax.numpy as jnp
    >>> layer = linear(jnp.ones((3, 3, 1, 1)), jnp.ones(1))
    >>> linear_conv(layer, jnp.ones((3, 3, 1)))[1, 1].tolist()
    [10.0]
    """
    return add_bias(product_conv(weights, x, padding=padding, strides=strides), weights.bias)


def product_conv(weights: Linear, x: Array, *, padding: str = "zero", strides=1) -> Array:
    """`A * x` for `float[..., *spatial, n]`.

    >>> import jax.numpy as jnp
    >>> layer = linear(jnp.ones((3, 3, 1, 1)), jnp.ones(1))
    >>> product_conv(layer, jnp.ones((3, 3, 1)))[1, 1].tolist()
    [9.0]
    """
    check_made(weights, Linear)
    return convolve(_checks.array(x=x), weights.kernel, padding=padding, strides=strides)


def residual_dense(weights: Residual, x: Array, *, activation="relu") -> Array:
    """`x - s(x W + b) 2 T^-1 W^T` for `float[..., n]`.

    >>> import jax.numpy as jnp
    >>> layer = Residual(jnp.eye(2), jnp.zeros(2), jnp.ones(2), jnp.zeros(2))
    >>> residual_dense(layer, jnp.array([1.0, -3.0])).tolist()
    [0.0, -3.0]
    """
    check_made(weights, Residual)
    s, x = activations.slope_restricted(activation), _checks.array(x=x)
    _check_width(weights.kernel, x)
    hidden = _stepped(s(add_bias(x @ weights.kernel, weights.bias)), weights.step)
    return x - hidden @ weights.kernel.T


def residual_conv(
    weights: Residual, x: Array, *, activation="relu", padding: str = "zero"
) -> Array:
    """The residual form with a padded convolution and its exact adjoint.

    >>> import jax.numpy as jnp
    >>> layer = Residual(jnp.ones((1, 1, 1, 1)), jnp.zeros(1), jnp.ones(1), jnp.zeros(1))
    >>> residual_conv(layer, jnp.ones((2, 2, 1))).ravel().tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    check_made(weights, Residual)
    s, x = activations.slope_restricted(activation), _checks.array(x=x)
    hidden = s(add_bias(convolve(x, weights.kernel, padding=padding), weights.bias))
    hidden = _stepped(hidden, weights.step)
    return x - adjoint(hidden, weights.kernel, x, padding=padding)


def linear(kernel: Array, bias: Array) -> Linear:
    """Weights of the linear form for a kernel of norm at most 1 that has no witness of its own.

    >>> import jax.numpy as jnp
    >>> linear(jnp.eye(2), jnp.zeros(2)).log_q.tolist()
    [0.0, 0.0]
    """
    dtype = jax.dtypes.canonicalize_dtype(kernel.dtype)
    return Linear(kernel, bias, jnp.zeros(min(kernel.shape[-2:]), dtype))


def as_residual(weights: Linear, *, log_temperature: Array | None = None) -> Residual:
    """The residual form of a contraction A: `x - 2 T^(-1/2) s(T^(1/2) (x A) + b) A^T`.

    For activations with `s(c x) = c s(x)`, as ReLU, every layer that the SDP condition with identity
    skip proves is one of these with T = 1. For others T is m more degrees of freedom.

    Args:
        weights: Of the linear form, `A` dense or convolutional (with stride 1).
        log_temperature: `float[m]`, the logarithm of the diagonal of T, clipped to `+-10`; None
            means T = 1.

    >>> import jax.numpy as jnp
    >>> mirror = as_residual(linear(jnp.eye(2), jnp.zeros(2)))
    >>> residual_dense(mirror, jnp.array([1.0, -3.0])).tolist()
    [-1.0, -3.0]
    """
    check_made(weights, Linear)
    kernel, hidden = weights.kernel, weights.kernel.shape[-1]
    if log_temperature is None:
        step = jnp.full(hidden, 2, kernel.dtype)
    else:
        log_temperature = jnp.asarray(log_temperature, kernel.dtype)
        _checks.ranked(1, log_temperature=log_temperature)
        _checks.axis_size(0, hidden, "one per output", log_temperature=log_temperature)
        root = jnp.exp(jnp.clip(log_temperature, -10, 10) / 2)
        kernel = kernel * jnp.broadcast_to(root, kernel.shape)
        step = 2 / jnp.square(root)
    return Residual(kernel, weights.bias, step, jnp.zeros(hidden, kernel.dtype))


def residual_of(
    linear: Callable[[Array], Array], x: Array, bias: Array, *, activation="relu"
) -> Array:
    """`x - 2 A s(A^T x + b)` for a linear map of norm at most 1 that is given as a function.

    Args:
        linear: `x -> A^T x`, linear in x and without a bias. Its exact adjoint is derived.
        x: `float[..., n]`.
        bias: `float[m]`.
        activation: One with slopes in [0, 1].

    >>> import jax.numpy as jnp
    >>> residual_of(lambda x: x, jnp.array([1.0, -3.0]), jnp.zeros(2)).tolist()
    [-1.0, -3.0]
    """
    s, x = activations.slope_restricted(activation), _checks.array(x=x)
    hidden = linear(x)
    _checks.ranked(1, "[m]", bias=bias)
    _checks.axis_size(0, hidden.shape[-1], "one per output of linear", bias=bias)
    hidden = s(add_bias(hidden, bias))
    (back,) = jax.linear_transpose(linear, x)(hidden)
    return x - 2 * back


def residual_of_bound(contraction: Bound) -> Bound:
    """Bound on `residual_of`, from that of its linear map: 1 up to norm 1, else `2 norm^2 - 1`.

    Guarantee: upper for an upper bound of the map; of other bounds an estimate.

    >>> from lipjax.typing import Bound
    >>> residual_of_bound(Bound(0.5, "upper")).value
    1.0
    """
    norm = at_least(float(contraction.value))
    kind = "upper" if contraction.proves_upper else "estimate"
    return Bound(max(1.0, at_least(2 * at_least(norm * norm) - 1)), kind)


def convex_mix(x: Array, y: Array, logit: Array) -> Array:
    """`g x + (1 - g) y` with `g = sigmoid(logit)`: 1-Lipschitz if y is in x.

    >>> import jax.numpy as jnp
    >>> convex_mix(jnp.ones(2), jnp.zeros(2), jnp.zeros(())).tolist()
    [0.5, 0.5]
    """
    x, y = _checks.array(x=x), _checks.array(y=y)
    if x.shape != y.shape:
        raise ValueError(f"x has shape {x.shape} and y {y.shape}; they must be the same.")
    gate = jnp.broadcast_to(jax.nn.sigmoid(logit), x.shape)
    return gate * x + (1 - gate) * y


def _stepped(hidden, step):
    """`hidden * step`; a unit whose step is 0 is switched off, also where it overflowed."""
    step = jnp.broadcast_to(step, hidden.shape)
    return jnp.where(step == 0, 0, hidden * step)


def linear_bound(weights: Linear) -> Bound:
    """Upper bound on the Lipschitz constant of the linear form.

    Guarantee: at least the constant with exactly these floats, of dense kernels and of convolutions with
    zero or circular padding, any stride and size; NaN or infinite weights give infinity, a zero kernel
    a bound of nearly zero.

    In float64 on the host: the smaller of the weighted row sums of the Gram matrix with the witness
    and a proof of the norm itself, by a factorization or Gram iteration; of kernels of more than 2^20
    numbers (2^16 of a convolution) that is left out where the row sums prove a norm of 1.

    >>> import jax.numpy as jnp
    >>> linear_bound(linear(0.5 * jnp.eye(2), jnp.zeros(2))).kind
    'upper'
    """
    check_made(weights, Linear)
    squared = _numerics.on_host_float64(squared_norm, weights.kernel, weights.log_q, None)
    return upper_bound(weights, math.sqrt(squared))


def residual_bound(weights: Residual) -> Bound:
    """Upper bound on the Lipschitz constant of the residual form.

    Guarantee: at least the constant with exactly these floats and an activation whose slopes lie in
    [0, 1]; NaN or infinite weights give infinity, a zero kernel 1.

    If `T` dominates `W^T W` up to a factor r, the form is r times a 1-Lipschitz one minus
    `(r - 1) x`, so the constant is at most `max(1, 2 r - 1)`.

    >>> import jax.numpy as jnp
    >>> layer = Residual(jnp.eye(2), jnp.zeros(2), jnp.ones(2), jnp.zeros(2))
    >>> round(float(residual_bound(layer).value), 6)
    1.0
    """
    check_made(weights, Residual)
    ratio = _numerics.on_host_float64(squared_norm, weights.kernel, weights.log_q, weights.step)
    return upper_bound(weights, max(1.0, at_least(2 * at_least(ratio) - 1)))


def upper_bound(weights, value) -> Bound:
    """That value, one step up, or infinity where the kernel or the bias is not finite."""
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in (weights.kernel, weights.bias))
    return Bound(at_least(value) if finite else math.inf, "upper")


def witness(kernel: Array, diagonal, side: str = "auto") -> Array:
    """`log(t) / 2` of what a rescaled kernel was divided by: its row sums with it are exactly 1.

    Args:
        kernel: Before the rescaling.
        diagonal: `kernel -> t`, of the columns.
        side: As in `lipjax.spectral.rescale`.
    """
    if on_rows(kernel, side):
        kernel = jnp.swapaxes(kernel, -1, -2)
    return _numerics.safe_log(lax.stop_gradient(diagonal(kernel))) / 2


def representable(step: Array) -> Array:
    """A step without infinities and subnormal numbers; a shorter step is always sound.

    >>> import jax.numpy as jnp
    >>> representable(jnp.float32(0.5)).item()
    0.5
    """
    limits = jnp.finfo(step.dtype)
    return jnp.where(jnp.abs(step) < limits.tiny, 0, jnp.minimum(step, limits.max))


def at_least(value) -> float:
    """A Python float, one step up; NaN (a proof that failed) becomes infinity."""
    value = float(value)
    return math.inf if math.isnan(value) else math.nextafter(value, math.inf)


def frozen(constrain, params):
    """`constrain(params)` computed in float64 on the host and rounded towards zero.

    The kernels of residual forms, biases and witnesses are what they were; the steps come out at
    most what the proof allows and closer to it than any float32 computation can get.
    """
    exact = _numerics.on_host_float64(constrain, params)
    dtype = jnp.result_type(jax.tree.leaves(params)[0])
    return jax.tree.map(functools.partial(_towards_zero, dtype=dtype), exact)


def _towards_zero(x, dtype):
    x = np.asarray(x)
    with np.errstate(over="ignore"):
        rounded = x.astype(dtype)
    beyond = np.abs(rounded.astype(np.float64)) > np.abs(x)
    return jnp.asarray(np.where(beyond, np.nextafter(rounded, np.zeros_like(rounded)), rounded))


def check_made(weights, form):
    """That the weights are of that form: free parameters would void the guarantee without a word.

    Also that there is one bias and one step for each output.
    """
    if not isinstance(weights, form):
        raise ValueError(
            f"weights is a {type(weights).__module__}.{type(weights).__name__}; it must be the "
            f"{form.__name__} that constrain or freeze makes of parameters, as in "
            "apply_dense(constrain_dense(params), x)."
        )
    outputs = jnp.shape(weights.kernel)[-1:]
    for name in ("bias", "step"):
        shape = jnp.shape(getattr(weights, name, weights.bias))
        if shape != outputs:
            raise ValueError(
                f"weights.{name} has shape {shape}; it must be {outputs}, one per output of the kernel."
            )


def _check_width(kernel, x):
    check_dtype(kernel, x)
    _checks.ranked(2, "[features in, features out] of a dense layer", kernel=kernel)
    if x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"x has shape {x.shape}; its last axis must have length {kernel.shape[0]}, the "
            "features that the layer was made for."
        )
