r"""Exponentials of skew matrices and convolutions: $e^S$ is orthogonal when $S^T = -S$.

The convolution is a Taylor sum $\sum_{j \le t} S^j x / j!$. The eigenvalues of S are imaginary, and for
the orders $t \equiv 0, 3 \pmod 4$ the truncated series stays within the unit circle up to an angle well
above 1 (2.8 for t = 4), so the layer is a contraction for these. Other orders expand: the published
training setting of five terms by up to 9e-4 per layer.

Reference: Singla, Feizi (2021), https://arxiv.org/abs/2105.11417. Which orders contract is a remark of
this library; its proof is one line, |sum_j (i a)^j / j!| <= 1, and `bound` checks it.
"""

import functools
import heapq
import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax._numerics import matmul, on_host_float64, power_of_two
from lipjax.layers import _initializers, _parameters, forms
from lipjax.layers._convolution import add_bias, convolve
from lipjax.layers._explicit import Params, at_most, leading_one, straightened, upright
from lipjax.layers.forms import Linear
from lipjax.layers.forms import linear_dense as apply_dense
from lipjax.layers.pooling import first_channels, pad_channels
from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.gram import gram_iteration
from lipjax.typing import Array, Bound

__all__ = [
    "Params", "Skew", "apply_conv", "apply_dense", "bound", "constrain_conv",
    "constrain_dense", "freeze_conv", "freeze_dense", "init_conv", "init_dense", "linear_conv",
]  # fmt: skip

ORDER = 4
"""Taylor order: a contraction that keeps at least 0.994 of every norm. 8 keeps all but 2e-6."""

LARGEST_ANGLE, LARGEST_ORDER = 100.0, 128
"""Up to these `bound` finds the largest value of the series, in some 10 ms; beyond it estimates."""


class Skew(NamedTuple):
    """Weights of the convolution.

    Attributes:
        kernel: `float[*window, n, m]`, whose skew part, with zero channels appended where n and m
            differ, has norm at most 1.
        bias: `float[m]`.
    """

    kernel: Array
    bias: Array


def init_dense(key: Array, in_features: int, out_features: int) -> Params:
    """Normal kernel with variance `1 / max(in_features, out_features)`.

    >>> import jax
    >>> init_dense(jax.random.key(0), 4, 3).kernel.shape
    (4, 3)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    _checks.one_key(key=key)
    scale = max(in_features, out_features) ** -0.5
    kernel = scale * jax.random.normal(key, (in_features, out_features))
    return Params(kernel, jnp.zeros(out_features))


def init_conv(
    key: Array, in_features: int, out_features: int, *, kernel_size=3, dims: int = 2
) -> Params:
    """Xavier normal kernel; windows are odd, since others have no skew part about a centre.

    >>> import jax
    >>> init_conv(jax.random.key(0), 2, 2).kernel.shape
    (3, 3, 2, 2)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    window = _initializers.window(kernel_size, dims)
    _check_odd(window, f"kernel_size is {kernel_size}")
    kernel = _initializers.xavier_normal(key, (*window, in_features, out_features))
    return Params(kernel, jnp.zeros(out_features))


def constrain_dense(params: Params, *, gradient: str = "norm") -> Linear:
    """The weights of the layer: the first rows and columns of `exp((W - W^T) / 2)`.

    Zeros are appended to make W square. The skew matrix is scaled down to a norm of at most pi,
    which loses nothing: every rotation is the exponential of such a one.

    Guarantee: norm 1 up to rounding, about 1e-6 (below 1e-5 for a thousand rows);
    `bound` proves what these floats have. A zero kernel gives the identity, cut to shape.
    Finite gradients everywhere. NaN in gives NaN out. `gradient` is that of the norm: `"norm"` has
    no second derivative (asking for one is an error), `"bound"` has, as in `gram_iteration`.

    >>> import jax
    >>> weights = constrain_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(abs(weights.kernel.T @ weights.kernel - jax.numpy.eye(3)).max() < 1e-5)
    True
    """
    params = _parameters.of_dense(Params, params)
    kernel = params.kernel
    rows, cols = kernel.shape
    skew = _skew(kernel)
    scale = power_of_two(jnp.max(jnp.abs(skew)))
    skew = skew / scale
    square = matmul(skew, skew)
    limit = _limit(skew, square, scale, gradient)
    rotation = exponential(skew * limit, square * (limit * limit))
    # Its rounding is 3e-6 for 512 features.
    return forms.linear(upright(straightened, rotation[:rows, :cols]), params.bias)


def constrain_conv(params: Params, *, num_iters: int = 4, gradient: str = "norm") -> Skew:
    """The weights of the convolution: the kernel over a bound on the norm of its skew part.

    Guarantee: with `apply_conv` of an order of 0 or 3 modulo 4, norm at most 1, for zero and
    circular padding and every size. A zero kernel gives the identity. NaN in gives NaN out.
    `gradient` as in `constrain_dense`.

    >>> import jax
    >>> constrain_conv(init_conv(jax.random.key(0), 2, 2)).kernel.shape
    (3, 3, 2, 2)
    """
    params = _parameters.of_conv(Params, params)
    kernel = leading_one(params.kernel)
    norm = conv_gram_iteration(_skew(kernel), padding="any", num_iters=num_iters, gradient=gradient)
    return Skew(kernel / jnp.where(norm == 0, 1, norm), params.bias)


def linear_conv(weights: Skew, x: Array, *, order: int = ORDER, padding: str = "zero") -> Array:
    """The convolution of `float[..., *spatial, n]`, without its bias; linear in x.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 2, 2))
    >>> linear_conv(weights, jnp.ones((5, 5, 2))).shape
    (5, 5, 2)
    """
    forms.check_made(weights, Skew)
    _checks.integer(1, order=order)
    x = _checks.array(x=x)
    _checks.at_least_rank(weights.kernel.ndim - 1, "[..., *spatial, channels]", x=x)
    if x.shape[-1] != weights.kernel.shape[-2]:
        raise ValueError(
            f"x has shape {x.shape}; its last axis must have length {weights.kernel.shape[-2]}, the "
            "channels that the layer was made for."
        )
    skew = _skew(weights.kernel)
    total = term = pad_channels(x, skew.shape[-1])
    for j in range(1, order + 1):
        term = convolve(term, skew, padding=padding) / j
        total = total + term
    return first_channels(total, weights.kernel.shape[-1])


def apply_conv(weights: Skew, x: Array, *, order: int = ORDER, padding: str = "zero") -> Array:
    """The layer on `float[..., *spatial, n]`, with that many terms after the first.

    Guarantee: 1-Lipschitz for orders of 0 or 3 modulo 4, up to the rounding of the evaluation.
    `bound` says what other orders have.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 2, 2))
    >>> apply_conv(weights, jnp.ones((5, 5, 2))).shape
    (5, 5, 2)
    """
    return add_bias(linear_conv(weights, x, order=order, padding=padding), weights.bias)


def freeze_dense(params: Params) -> Linear:
    """`constrain_dense` in float64 on the host, rounded: for evaluation.

    >>> import jax
    >>> weights = freeze_dense(init_dense(jax.random.key(0), 4, 3))
    >>> bool(bound(weights).value <= 1 + 1e-6)
    True
    """
    return forms.frozen(constrain_dense, params)


def freeze_conv(params: Params) -> Skew:
    """`constrain_conv` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(functools.partial(constrain_conv, num_iters=10), params)


def bound(weights: Linear | Skew, *, order: int = ORDER) -> Bound:
    """Upper bound on the Lipschitz constant with these weights, proved in float64 on the host.

    Guarantee: at least the constant of the layer with exactly these floats, of a convolution with a
    series of that order and zero or circular padding of every size; NaN or infinite weights
    give infinity.

    For a convolution the norm of the skew part is bounded for every size, and the truncated series
    of that order up to that angle: to the last digits up to an angle of 100 and order 128, by the
    sizes of its terms beyond.

    >>> import jax
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 2, 2))
    >>> bool(bound(weights).value < 1 + 1e-6), bool(bound(weights, order=5).value > 1 + 5e-4)
    (True, True)
    """
    _checks.integer(1, order=order)
    if isinstance(weights, Linear):
        return forms.linear_bound(weights)
    forms.check_made(weights, Skew)

    def norm(kernel):
        return conv_gram_iteration(_skew(kernel), padding="any", num_iters=12)

    angle = forms.at_least(on_host_float64(norm, weights.kernel))
    return forms.upper_bound(weights, _series_bound(angle, order))


def _series_bound(angle: float, order: int) -> float:
    """At least `|sum_{j <= order} (i a)^j / j!|` for every `|a| <= angle`.

    The sum of the sizes of the terms, or 1 and a bound on what the series leaves out of `e^(i a)`, or
    the largest value itself, where that is no long computation.
    """
    if not np.isfinite(angle):
        return math.inf
    total = term = 1.0
    for j in range(1, order + 1):
        term = math.nextafter(term * math.nextafter(angle / j, math.inf), math.inf)
        total = math.nextafter(total + term, math.inf)
    term = math.nextafter(term * math.nextafter(angle / (order + 1), math.inf), math.inf)
    quick = min(total, math.nextafter(1 + term, math.inf))
    if angle > LARGEST_ANGLE or order > LARGEST_ORDER:
        return forms.at_least(quick)
    return forms.at_least(min(quick, math.sqrt(1 + _largest_excess(angle, order)) * (1 + 1e-15)))


def _largest_excess(angle: float, order: int) -> float:
    r"""At least the largest value of `|sum_j (i a)^j / j!|^2 - 1` on [0, angle], and hardly more.

    With $y = a^2$ and n the order that is $\sum_{k > n / 2}^n c_k y^k$ with
    $c_k = 2 (-1)^{k + n} \binom{2 k - 1}{n} / (2 k)!$, whose terms cancel: in float64 nothing of it is
    left at an angle of 20. A polynomial is at most the largest of its Bernstein coefficients, and the
    first and the last of them are its values at the ends. The interval is halved where they are
    largest, until they say no more. All of it in integers, each rounded up: the coefficients of a
    half are means of those of the whole.
    """
    unit = 2 ** (128 + order)  # a coefficient is a sum of up to 2^order roundings
    square, scaled = Fraction(angle) ** 2, [0] * (order + 1)
    for k in range(order // 2 + 1, order + 1):
        c = Fraction(2 * (-1) ** (k + order) * math.comb(2 * k - 1, order), math.factorial(2 * k))
        scaled[k] = math.ceil(c * square**k * unit / math.comb(order, k))
    row = [sum(math.comb(i, k) * scaled[k] for k in range(i + 1)) for i in range(order + 1)]
    reached, parts = max(row[0], row[-1]), [(-max(row), row)]
    for _ in range(1000):  # ends before, at a local maximum after 20 to 30; sound whenever it ends
        if -parts[0][0] - reached <= (unit + reached) >> 45:
            break
        _, row = heapq.heappop(parts)
        left, right = [], []
        while row:
            left.append(row[0])
            right.append(row[-1])
            row = [-(-(a + b) // 2) for a, b in zip(row, row[1:])]
        reached = max(reached, left[-1])
        for half in (left, right):
            heapq.heappush(parts, (-max(half), half))
    return -parts[0][0] / unit * (1 + 1e-15)


def _limit(skew, square, scale, gradient):
    """What to multiply the matrix by: the scale, or less for a norm of pi.

    Singular values of skew matrices come in pairs, so that the norm is at most the eighth root of
    half the squared Frobenius norm of the fourth power: below pi for most kernels, at one product.
    """
    fourth = matmul(lax.stop_gradient(square), lax.stop_gradient(square))
    quick = (jnp.sum(jnp.square(fourth)) / 2) ** 0.125

    def measured(skew, scale):
        norm = gram_iteration(skew, gradient=gradient)
        return jnp.minimum(scale, jnp.pi / jnp.where(norm > 0, norm, 1))

    small = at_most(lax.stop_gradient(scale) * quick, jnp.pi)
    return lax.cond(small, lambda skew, scale: scale, measured, skew, scale)


def exponential(skew: Array, square: Array | None = None) -> Array:
    """`exp(A)` of a skew matrix of norm at most pi, in float32 by four products, `A^2` among them.

    In float32 a polynomial of degree 12, the Chebyshev series of `e^(i x)` on [-pi, pi], with an error
    of 1e-7 (of its slope 5e-6) and half of the rounding of a Taylor sum of `A / 8`, squared three times,
    which takes six products. In float64 such a sum, of degree 13 and with an error of 1e-15.

    >>> import jax.numpy as jnp
    >>> exponential(jnp.array([[0.0, jnp.pi / 2], [-jnp.pi / 2, 0.0]])).round(4) + 0.0
    Array([[ 0.,  1.],
           [-1.,  0.]], dtype=float32)
    """
    eye = jnp.eye(skew.shape[-1], dtype=skew.dtype)
    second = matmul(skew, skew) if square is None else square
    if skew.dtype == jnp.float32:
        return _degree_12(eye, skew, second)
    total = _degree_13(eye, skew / 8, second / 64)
    for _ in range(3):
        total = matmul(total, total)
    return total


_DEGREE_12 = (
    (-0.53, 0.2867922099, -0.1215446259, -0.02073908151),
    (4.8, 1.102104692, 0.03950760365, 0.01306011646),
    (0.21, -0.0303993638, 0.05762875085, 0.0007128907218),
    (0.3, 0.1687446133, 0.0190224536, 0.006444160928),
)
"""Coefficients of 1, A, A^2 and A^3 in four cubics p, q, r, s with `p + (q + r + s^2) (r + s^2)`.

Three degrees of freedom are left by the 13 coefficients of the polynomial, here for little rounding.
The form is that of Bader, Blanes, Casas (2019), https://doi.org/10.3390/math7121174.
"""


def _degree_12(eye, a, second):
    powers = (eye, a, second, matmul(second, a))
    p, q, r, s = (sum(c * power for c, power in zip(row, powers)) for row in _DEGREE_12)
    inside = r + matmul(s, s)
    return p + matmul(q + inside, inside)


def _degree_13(eye, a, second):
    powers = [eye, a, second, matmul(second, a)]
    fourth = matmul(second, second)

    def part(first, last):
        return sum(p / math.factorial(j) for j, p in zip(range(first, last + 1), powers))

    total = part(4, 7) + matmul(fourth, part(8, 11) + matmul(fourth, part(12, 13)))
    return part(0, 3) + matmul(fourth, total)


def _skew(kernel):
    """`(K - K^T) / 2` of the kernel with zero channels appended to make it square; exactly skew.

    Padding is about the centre of the window, so the mirrored kernel is the adjoint for odd windows.
    """
    _check_odd(kernel.shape[:-2], f"kernel has shape {kernel.shape}")
    rows, cols = kernel.shape[-2:]
    size = max(rows, cols)
    pads = [(0, 0)] * (kernel.ndim - 2) + [(0, size - rows), (0, size - cols)]
    square = jnp.pad(kernel, pads)
    mirrored = jnp.flip(jnp.swapaxes(square, -1, -2), tuple(range(kernel.ndim - 2)))
    return square / 2 - mirrored / 2  # the difference may overflow


def _check_odd(window, what: str):
    if any(k % 2 == 0 for k in window):
        raise ValueError(f"{what}; the window must be odd, to have a centre to be skew about.")
