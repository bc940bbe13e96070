r"""Spectral rescaling: a kernel rescaled by the row sums of a power of its Gram matrix.

$A = W \mathrm{diag}(t)^{-1/2}$ with $t_i = (\sum_j |(W^T W)^p|_{ij} r_j / r_i)^{1/p}$ and
$p = 2^{N - 1}$, or the same on the inputs; by default on the side of the smaller Gram matrix
(`lipjax.spectral.rescale`). One iteration
with equal weights r is the almost-orthogonal layer; many iterations divide by the spectral norm.

Reference: Delattre, Barthélemy, Allauzen (2024), https://arxiv.org/abs/2402.00240. The learned
weights r are those of Araujo et al. (2023), https://arxiv.org/abs/2303.03169.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax.layers import _initializers, _parameters, forms
from lipjax.layers.forms import Linear
from lipjax.spectral.rescaling import (
    conv_dominating_diagonal,
    conv_rescale,
    dominating_diagonal,
    on_rows,
    rescale,
)
from lipjax.typing import Array, Bound


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[n, m]` or `float[*window, n, m]`.
        bias: `float[m]`.
        log_q: `float[min(n, m)]`, or of the side that is chosen, logarithms of the weights r.
    """

    kernel: Array
    bias: Array
    log_q: Array


def init_dense(key: Array, in_features: int, out_features: int, *, side: str = "auto") -> Params:
    """An isometry: the identity, or random orthonormal columns or rows for unequal widths.

    `side` is that of `constrain_dense`: it has one weight `log_q` per channel.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    return _init(key, (in_features, out_features), side)


def init_conv(
    key: Array,
    in_features: int,
    out_features: int,
    *,
    kernel_size=3,
    dims: int = 2,
    side: str = "auto",
) -> Params:
    """As `init_dense`, at the central tap, for `dims` spatial axes.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4, 3).kernel.shape
    (3, 3, 4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    window = _initializers.window(kernel_size, dims)
    return _init(key, (*window, in_features, out_features), side)


def constrain_dense(
    params: Params, *, num_iters: int = 3, tighten: bool = False, side: str = "auto"
) -> Linear:
    """The weights of the layer; the options are those of `lipjax.spectral.rescale`.

    Guarantee: the kernel returned has norm at most 1 in exact arithmetic. Zero columns stay zero,
    with finite gradients. NaN in gives NaN out.

    >>> import jax
    >>> constrain_dense(init_dense(jax.random.key(0), 4, 3)).kernel.shape
    (4, 3)
    """
    params = _parameters.of_dense(Params, params)
    return _constrain(rescale, dominating_diagonal, params, num_iters, tighten, side)


def constrain_conv(
    params: Params, *, num_iters: int = 2, tighten: bool = False, side: str = "auto"
) -> Linear:
    """As `constrain_dense`, for zero and circular padding, every stride and input size."""
    params = _parameters.of_conv(Params, params)
    return _constrain(conv_rescale, conv_dominating_diagonal, params, num_iters, tighten, side)


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


def freeze_dense(
    params: Params, *, num_iters: int = 3, tighten: bool = False, side: str = "auto"
) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    options = dict(num_iters=num_iters, tighten=tighten, side=side)
    return forms.frozen(functools.partial(constrain_dense, **options), params)


def freeze_conv(
    params: Params, *, num_iters: int = 2, tighten: bool = False, side: str = "auto"
) -> Linear:
    """`constrain_conv` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_conv(init_conv(jax.random.key(0), 2, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    options = dict(num_iters=num_iters, tighten=tighten, side=side)
    return forms.frozen(functools.partial(constrain_conv, **options), params)


def bound(weights: Linear) -> Bound:
    """Upper bound on the Lipschitz constant of the layer with these weights, proved in float64.

    Guarantee: at least the constant of the layer with exactly these floats, of convolutions at every
    size, stride and padding; NaN or infinite weights give infinity.

    With weights `log_q` that differ and more than one iteration it may be up to 1.01 where the constant
    is 1.

    >>> import jax
    >>> bound(constrain_dense(init_dense(jax.random.key(0), 4, 3))).kind
    'upper'
    """
    return forms.linear_bound(weights)


def _init(key, shape, side) -> Params:
    kernel = _initializers.identity_or_orthogonal(key, shape)
    channels = shape[-2] if on_rows(kernel, side) else shape[-1]
    return Params(kernel, jnp.zeros(shape[-1]), jnp.zeros(channels))


def _constrain(rescaled, diagonal, params, num_iters, tighten, side) -> Linear:
    options = dict(num_iters=num_iters, log_q=params.log_q)
    kernel = rescaled(params.kernel, **options, tighten=tighten, side=side)
    witness = forms.witness(params.kernel, functools.partial(diagonal, **options), side)
    if num_iters == 1:  # the weights with which the row sums are 1
        witness = witness + lax.stop_gradient(params.log_q)
    return Linear(kernel, params.bias, witness)
