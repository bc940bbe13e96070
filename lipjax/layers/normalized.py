"""Spectrally normalized layer: a kernel divided by an upper bound on its spectral norm.

The largest singular value becomes 1 and all others stay below it, in proportion. Libraries divide by
an estimate from below (power iteration), or by the norm of the reshaped kernel, which is not that of
the convolution; here it is a bound on the operator itself, so the layer is 1-Lipschitz.

Reference: Miyato et al. (2018), https://arxiv.org/abs/1802.05957; the bound by Delattre et al. (2023),
https://arxiv.org/abs/2305.16173.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp

from lipjax._numerics import unit_roundoff
from lipjax.layers import _initializers, _parameters, forms
from lipjax.layers._explicit import Params, isometric, leading_one
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_bound as bound
from lipjax.layers.forms import linear_conv as apply_conv
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.gram import gram_iteration
from lipjax.typing import Array

__all__ = [
    "Params", "apply_conv", "apply_dense", "bound", "constrain_conv", "constrain_dense",
    "freeze_conv", "freeze_dense", "init_conv", "init_dense",
]  # fmt: skip


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """An isometry: the identity, or random orthonormal columns or rows for unequal widths.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    return isometric(key, in_features, out_features)


def init_conv(
    key: Array, in_features: int, out_features: int, *, kernel_size=3, dims: int = 2
) -> Params:
    """As `init_dense`, at the central tap, for `dims` spatial axes.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4, 3).kernel.shape
    (3, 3, 4, 3)
    """
    return isometric(key, in_features, out_features, _initializers.window(kernel_size, dims))


def constrain_dense(
    params: Params,
    *,
    norm: Callable[[Array], Array] | None = None,
    num_iters: int = 6,
    gradient: str = "norm",
) -> Linear:
    """The weights of the layer, `kernel / norm(kernel)`.

    Args:
        params: Of `init_dense`.
        norm: `kernel -> float[]`, by default `gram_iteration` with `num_iters` products. With an
            estimate from below in its place the layer is not 1-Lipschitz; `bound` then says by how
            much, and `freeze_dense` divides by the bound whatever was used in training.
        num_iters: Gram products of the default.
        gradient: Of the default; `"norm"` costs no further product and has no second derivative (asking
            for one is an error), `"bound"` has, as in `gram_iteration`.

    Returns:
        `kernel: float[n, m]`, `bias: float[m]` and a witness.

    Guarantee: with an upper bound as `norm`, the kernel returned has norm at most 1. A zero kernel
    stays zero, with finite gradients. NaN in gives NaN out.

    >>> import jax.numpy as jnp
    >>> weights = constrain_dense(Params(2 * jnp.eye(3), jnp.zeros(3)))
    >>> weights.kernel[0, 0].round(4).item()
    1.0
    """
    params = _parameters.of_dense(Params, params)
    norm = norm or functools.partial(gram_iteration, num_iters=num_iters, gradient=gradient)
    return _over(norm, params)


def constrain_conv(
    params: Params,
    *,
    norm: Callable[[Array], Array] | None = None,
    num_iters: int = 4,
    gradient: str = "norm",
) -> Linear:
    """As `constrain_dense`; the default bound holds for zero and circular padding and every size.

    >>> import jax.numpy as jnp
    >>> weights = constrain_conv(Params(jnp.full((1, 1, 1, 1), 4.0), jnp.zeros(1)))
    >>> weights.kernel.round(4).item()
    1.0
    """
    params = _parameters.of_conv(Params, params)
    norm = norm or functools.partial(
        conv_gram_iteration, padding="any", num_iters=num_iters, gradient=gradient
    )
    return _over(norm, params)


def freeze_dense(params: Params) -> Linear:
    """The kernel over a bound of its norm in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(functools.partial(constrain_dense, num_iters=12), params)


def freeze_conv(params: Params) -> Linear:
    """As `freeze_dense`, for zero and circular padding and every size.

    >>> import jax
    >>> weights = freeze_conv(init_conv(jax.random.key(0), 2, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(functools.partial(constrain_conv, num_iters=10), params)


def _over(norm, params) -> Linear:
    kernel = leading_one(params.kernel)
    size = norm(kernel)
    # Rounding each entry moves the norm by at most u sqrt(taps columns) of it.
    reach = math.sqrt(math.prod(kernel.shape) / max(kernel.shape[-2:]))
    shrink = 1 - 4 * unit_roundoff(kernel.dtype) * reach
    factor = jnp.where(size == 0, 1, shrink / jnp.where(size == 0, 1, size))
    return forms.linear(kernel * factor, params.bias)
