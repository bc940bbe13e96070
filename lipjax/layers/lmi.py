r"""The SDP condition behind every layer, as a matrix whose smallest eigenvalue is the proof.

A layer $h(x) = H x + G\, s(W^T x + b)$ with an activation of slopes in [0, 1] on each entry is
1-Lipschitz if there is a diagonal $\Lambda \succeq 0$ with

$$ \begin{pmatrix} I - H^T H & -H^T G - W \Lambda \\\\
   -G^T H - \Lambda W^T & 2 \Lambda - G^T G \end{pmatrix} \succeq 0. $$

Multiply it by the change of the input and of the activation: the slope condition
$\Delta s^T \Lambda (W^T \Delta x - \Delta s) \ge 0$ turns it into
$\|h(x + \Delta x) - h(x)\| \le \|\Delta x\|$.

Reference: Araujo et al. (2023), https://arxiv.org/abs/2303.03169, after LipSDP (Fazlyab et al. 2019,
https://arxiv.org/abs/1906.04893).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import matmul
from lipjax.layers import _transfer, block, sandwich, skew
from lipjax.layers._convolution import convolve
from lipjax.layers._transfer import Transfer
from lipjax.layers.block import Strided
from lipjax.layers.forms import Linear, Residual
from lipjax.layers.sandwich import Sandwich
from lipjax.layers.skew import Skew
from lipjax.typing import Array

KINDS = Linear | Residual | Sandwich | Skew | Strided | Transfer
"""The weights that layers of this library multiply with."""


class Matrices(NamedTuple):
    """A layer as matrices on column vectors.

    Attributes:
        skip: `float[d, n]`, the H.
        outer: `float[d, m]`, the G.
        inner: `float[n, m]`, the W.
        multiplier: `float[m]`, the diagonal of Lambda.
    """

    skip: Array
    outer: Array
    inner: Array
    multiplier: Array


def residual(skip: Array, outer: Array, inner: Array, multiplier: Array) -> Array:
    """The matrix of the condition, `float[n + m, n + m]`, symmetric.

    Its smallest eigenvalue is at least 0 (up to rounding) exactly when `multiplier` proves that
    the layer is 1-Lipschitz for every admissible activation. Meant for float64 and small layers.

    Args:
        skip, outer, inner, multiplier: as in `Matrices`; `residual(*matrices)` works.

    Raises:
        ValueError: for shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> reflect = residual(jnp.eye(2), -2 * jnp.eye(2), jnp.eye(2), 2 * jnp.ones(2))
    >>> float(jnp.linalg.eigvalsh(reflect).min()) >= -1e-6
    True
    """
    skip, outer, inner, multiplier = map(jnp.asarray, (skip, outer, inner, multiplier))
    _checks.ranked(2, skip=skip, outer=outer, inner=inner)
    _checks.ranked(1, multiplier=multiplier)
    (n, m), d = inner.shape, outer.shape[0]
    _checks.axis_size(0, m, "one per hidden unit of inner", multiplier=multiplier)
    _checks.axis_size(1, m, "the hidden units of inner", outer=outer)
    _checks.axis_size(1, n, "the inputs of inner", skip=skip)
    _checks.axis_size(0, d, "the outputs of outer", skip=skip)
    corner = -matmul(skip.T, outer) - inner * jnp.broadcast_to(multiplier, inner.shape)
    first = jnp.eye(n, dtype=inner.dtype) - matmul(skip.T, skip)
    last = 2 * jnp.diag(multiplier) - matmul(outer.T, outer)
    return jnp.block([[first, corner], [corner.T, last]])


def of_dense(weights: Linear | Residual | Sandwich) -> Matrices:
    """The matrices of a dense layer: linear, residual (SLL, CPL) or sandwich.

    Raises:
        ValueError: for weights of other layers, or of convolutions.

    >>> import jax.numpy as jnp
    >>> from lipjax.layers import forms
    >>> layer = forms.linear(0.5 * jnp.eye(2), jnp.zeros(2))
    >>> residual(*of_dense(layer)).tolist()
    [[0.75, 0.0], [0.0, 0.75]]
    """
    if not isinstance(weights, Linear | Residual | Sandwich):
        raise unknown(weights)
    _checks.ranked(2, "[n, m]; use of_conv for a convolution", kernel=weights.kernel)
    if isinstance(weights, Linear):
        return _linear(weights.kernel)
    if isinstance(weights, Sandwich):
        upper, lower = sandwich.halves(weights)
        return _no_skip(upper, lower, sandwich.psi(weights))
    return _identity_skip(weights.kernel, weights.step)


def of_conv(
    weights: Linear | Residual | Sandwich | Skew | Strided | Transfer,
    input_size: int | Sequence[int],
    *,
    padding: str = "zero",
    strides: int | Sequence[int] = 1,
    order: int = skew.ORDER,
) -> Matrices:
    """The matrices of a convolutional layer on whole images, written out.

    Only for small images: they have as many rows as an image has entries.

    Args:
        weights: Of any layer of `lipjax.layers`.
        input_size: One integer, or one per spatial axis.
        padding: Of the layer; those with one matrix per frequency are circular.
        strides: Of a linear layer. Block-orthogonal weights know theirs.
        order: Of a skew convolution.

    Raises:
        ValueError: for weights of other kinds, of a dense layer, or strides where there are none.

    >>> import jax.numpy as jnp
    >>> from lipjax.layers import forms
    >>> layer = forms.linear(jnp.full((1, 1, 1, 1), 0.5), jnp.zeros(1))
    >>> residual(*of_conv(layer, 2)).diagonal().tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    if not isinstance(weights, KINDS):
        raise unknown(weights)
    kernel = weights.kernel
    _checks.ranked((3, 4, 5), "[*window, n, m]; use of_dense for a matrix", kernel=kernel)
    strides = _checks.per_axis(kernel.ndim - 2, strides=strides)
    if not isinstance(weights, Linear) and set(strides) != {1}:
        raise ValueError(
            f"strides is {strides} for a {type(weights).__name__}; only those of a linear layer are "
            "passed here."
        )
    size = _checks.per_axis(kernel.ndim - 2, input_size=input_size)
    points = math.prod(size)

    def matrix(fn, channels, dtype):
        basis = jnp.eye(points * channels, dtype=dtype).reshape(-1, *size, channels)
        return fn(basis).reshape(points * channels, -1)

    bias, (c_in, c_out) = weights.bias, kernel.shape[-2:]
    if isinstance(weights, Sandwich):
        upper, lower = sandwich.halves(weights)
        back = Transfer(jnp.swapaxes(upper, -1, -2), bias)
        into = Transfer(jnp.conj(lower), bias)
        outer = matrix(lambda x: _transfer.multiply(back, x), c_out, bias.dtype).T
        inner = matrix(lambda x: _transfer.multiply(into, x), c_in - c_out, bias.dtype)
        return _no_skip(outer, inner, jnp.tile(sandwich.psi(weights), points))
    if isinstance(weights, Transfer):
        skip = matrix(lambda x: _transfer.multiply(weights, x), c_in, bias.dtype)
    elif isinstance(weights, Skew):
        fn = functools.partial(skew.linear_conv, weights, padding=padding, order=order)
        skip = matrix(fn, c_in, bias.dtype)
    elif isinstance(weights, Strided):
        skip = matrix(
            functools.partial(block.linear_conv, weights, padding=padding), c_in, bias.dtype
        )
    else:
        options = dict(padding=padding, strides=strides)
        skip = matrix(lambda x: convolve(x, kernel, **options), c_in, kernel.dtype)
    if isinstance(weights, Residual):
        return _identity_skip(skip, jnp.tile(weights.step, points))
    return _linear(skip)


def of_residual(linear: Callable[[Array], Array], shape: tuple[int, ...]) -> Matrices:
    """The matrices of `lipjax.layers.forms.residual_of`: `x - 2 A s(A^T x + b)`.

    Args:
        linear: `x -> A^T x`, of examples of that shape.
        shape: Of one example.

    >>> import jax.numpy as jnp
    >>> of_residual(lambda x: 0.5 * x, (2,)).multiplier.tolist()
    [2.0, 2.0]
    """
    size = math.prod(shape)
    inner = linear(jnp.eye(size).reshape(-1, *shape)).reshape(size, -1)
    return _identity_skip(inner, jnp.full(inner.shape[1], 2, inner.dtype))


def of_mix(matrices: Matrices, gate: Array | float) -> Matrices:
    """The matrices of `g x + (1 - g) h(x)`: `(g I + (1 - g) H, (1 - g) G, W, (1 - g) Lambda)`.

    For a gate in [0, 1] the condition holds where that of h does, as the squared norm is convex. An
    output bias of h is multiplied by `1 - g` too.

    Args:
        matrices: Of h, which keeps the shape.
        gate: `float[]`, the g.

    Raises:
        ValueError: for a layer that changes the shape.

    >>> import jax.numpy as jnp
    >>> turned = Matrices(-jnp.eye(2), jnp.zeros((2, 0)), jnp.zeros((2, 0)), jnp.zeros(0))
    >>> of_mix(turned, 0.75).skip.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    skip, outer, inner, multiplier = matrices
    if skip.shape[0] != skip.shape[1]:
        raise ValueError(
            f"matrices is of a layer from {skip.shape[1]} entries to {skip.shape[0]}; to be mixed with "
            "its input it must keep their number."
        )
    gate = jnp.asarray(gate, skip.dtype)
    mixed = gate * jnp.eye(len(skip), dtype=skip.dtype) + (1 - gate) * skip
    return Matrices(mixed, (1 - gate) * outer, inner, (1 - gate) * multiplier)


def unknown(weights) -> ValueError:
    """The error for weights that no layer makes."""
    return ValueError(
        f"weights is a {type(weights).__name__}; it must be what constrain or freeze of a layer of "
        "lipjax.layers returns. For others: residual(skip, outer, inner, multiplier)."
    )


def _linear(matrix):
    """`W^T x`: no activation, and the condition is `I - W W^T`."""
    n, m = matrix.shape
    none = jnp.zeros(0, matrix.dtype)
    return Matrices(matrix.T, none.reshape(m, 0), none.reshape(n, 0), none)


def _identity_skip(inner, step):
    """`x - W step s(W^T x + b)`, proved by `Lambda = 2 T^-1 = step`."""
    outer = -inner * jnp.broadcast_to(step, inner.shape)
    return Matrices(jnp.eye(len(inner), dtype=inner.dtype), outer, inner, step)


def _no_skip(upper, lower, psi):
    """`sqrt(2) A^T Psi s(sqrt(2) Psi^-1 B x + b)`, proved by `Lambda = Psi^2`."""
    outer = math.sqrt(2) * upper * jnp.broadcast_to(psi, upper.shape)
    inner = math.sqrt(2) * lower / jnp.broadcast_to(psi, lower.shape)
    return Matrices(jnp.zeros((len(upper), len(lower)), upper.dtype), outer, inner, jnp.square(psi))
