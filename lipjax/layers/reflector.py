r"""Block reflectors: $Q = I - 2 V (V^T V + \varepsilon I)^{-1} V^T$, a reflection of a whole subspace.

Symmetric, with eigenvalues -1 on the span of the r columns of V and 1 on the rest; its norm is at most
1 for every $\varepsilon \ge 0$, since the eigenvalues are $1 - 2 \lambda / (\lambda + \varepsilon)$.
Cheaper than other orthogonal layers, because the matrix to be inverted has r rows. The convolution
does so at each frequency.

In float32 that formula expands when the columns of V are nearly dependent (measured: 1.01). Here V is
made orthonormal first, $Q = I - 2 Y Y^T$ with $Y = V (V^T V + \varepsilon I)^{-1/2}$ up to a rotation,
and two Björck steps on Y bring its norm to at most 1. Where the columns of V have a condition beyond
about $1 / \sqrt{8 u r}$, 130 for 128 of them in float32, the result is a contraction still, and no
longer a reflection; frozen weights, made in float64, are one.

Reference: Lai et al. (2025), https://arxiv.org/abs/2505.15174.
"""

import functools

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import matmul, unit_roundoff
from lipjax.layers import _initializers, _parameters, _transfer, forms
from lipjax.layers._explicit import Params, adjoint, bjorck_step, leading_one, whitened
from lipjax.layers._transfer import Transfer
from lipjax.layers._transfer import apply as apply_conv
from lipjax.layers._transfer import multiply as linear_conv
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.typing import Array, Bound

__all__ = [
    "Params", "apply_conv", "apply_dense", "bound", "constrain_conv",
    "constrain_dense", "freeze_conv", "freeze_dense", "init_conv", "init_dense", "linear_conv",
]  # fmt: skip


def init_dense(key: Array, features: int, *, rank: int | None = None, depth: int = 1) -> Params:
    """Reflects the first `rank` axes, up to noise of variance `1 / (features depth)`.

    Args:
        key: Random key.
        features: Width of input and output.
        rank: Dimension of the reflected subspace, below `features`; half of it by default. (With
            rank equal to `features` the layer is minus the identity.)
        depth: Number of such layers in the network.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4).kernel.shape
    (4, 2)
    """
    return _init(key, features, rank, depth, ())


def init_conv(
    key: Array, channels: int, *, rank: int | None = None, kernel_size=3, depth: int = 1
) -> Params:
    """As `init_dense` at the central tap, with noise at all taps.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4).kernel.shape
    (3, 3, 4, 2)
    """
    return _init(key, channels, rank, depth, _initializers.window(kernel_size, 2))


def constrain_dense(params: Params) -> Linear:
    """The weights of the layer; the width stays.

    Guarantee: norm at most 1 up to rounding, about 1e-6 (below 1e-5 for a thousand
    rows); `bound` proves what these floats have. A zero kernel gives the
    identity. Finite gradients everywhere. NaN in gives NaN out.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(4)).max() < 1e-5)
    True
    """
    params = _parameters.of_dense(Params, params, outputs=-2)
    return forms.linear(_reflect(leading_one(params.kernel)), params.bias)


def constrain_conv(params: Params, *, input_size) -> Transfer:
    """The weights of the convolution for images of that size, one integer or (height, width).

    Guarantee: circular convolution of norm at most 1 up to rounding, as `constrain_dense`.

    >>> import jax
    >>> constrain_conv(init_conv(jax.random.key(0), 2), input_size=4).kernel.shape
    (4, 3, 2, 2)
    """
    params = _parameters.of_conv(Params, params, 4, outputs=-2)
    symbol = _transfer.symbol(leading_one(params.kernel), input_size)
    return Transfer(_reflect(symbol), params.bias)


def freeze_dense(params: Params) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(constrain_dense, params)


def freeze_conv(params: Params, *, input_size) -> Transfer:
    """`constrain_conv` in float64 on the host, rounded: for evaluation."""
    return _transfer.frozen(functools.partial(constrain_conv, input_size=input_size), params)


def bound(weights: Linear | Transfer) -> Bound:
    """Upper bound on the Lipschitz constant with these weights, proved in float64 on the host.

    Guarantee: at least the constant of the layer with exactly these floats, of a convolution at the size
    that its frequencies are of; NaN or infinite weights give infinity.

    >>> import jax
    >>> bound(constrain_dense(init_dense(jax.random.key(0), 4))).kind
    'upper'
    """
    return (
        _transfer.bound(weights) if isinstance(weights, Transfer) else forms.linear_bound(weights)
    )


def _reflect(v):
    # Two Bjorck steps take out the damping, and the last factor their rounding, which a reflection
    # doubles.
    u, (rows, cols) = unit_roundoff(v.real.dtype), v.shape[-2:]
    basis = bjorck_step(bjorck_step(whitened(v, 8 * u * cols))) * (1 - 2 * u * rows**0.5)
    identity = jnp.eye(v.shape[-2], dtype=v.dtype)
    product = matmul(basis, adjoint(basis))
    return jnp.broadcast_to(identity, product.shape) - 2 * product


def _init(key, features, rank, depth, window) -> Params:
    _checks.integer(1, features=features, depth=depth)
    _checks.one_key(key=key)
    rank = max(1, features // 2) if rank is None else rank
    _checks.integer(1, rank=rank)
    if rank >= features and features > 1:
        raise ValueError(f"rank is {rank}; it must be below the {features} features.")
    taps = 1
    for k in window:
        taps *= k
    noise = jax.random.normal(key, (*window, features, rank)) / (taps * features * depth) ** 0.5
    centre = tuple((k - 1) // 2 for k in window)
    return Params(noise.at[centre].add(jnp.eye(features, rank)), jnp.zeros(features))
