r"""Spectral norms of matrices by Gram iteration, with the rounding error inside the bound.

Write $P_0 = W^* W$ and $P_t = (P_{t-1} / s_t)^2$ with $s_t$ a power of two near the trace. The
largest singular values obey $\sigma_1(W)^2 = \sigma_1(P_0)$ and $\sigma_1(P_{t-1})^2 =
s_t^2 \sigma_1(P_t)$, so an upper bound for the last iterate unwinds to one of $\sigma_1(W)$ through
one square root per product, and each root halves its relative excess
(Delattre, Barthélemy, Araujo, Allauzen 2023, https://arxiv.org/abs/2305.16173).

Four things differ from the paper. Scaling by a power of two is exact, so nothing overflows and no
logarithm is needed. The last iterate is bounded by deflation of one vector instead of its Frobenius
norm. Each floating-point product contributes a proved error term on the way back up, so that the
float32 result is at least the norm of the float32 input. And a Hermitian iterate $A + iB$ is kept
as the one real matrix $M = A + B$ ($A$ is its symmetric and $B$ its antisymmetric part), whose
square is $M A + M^T B$: two real products and no complex number.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import (
    einsum,
    gamma,
    matmul,
    power_of_two,
    round_down,
    round_up,
    safe_norm,
    safe_reciprocal,
    safe_rsqrt,
    safe_sqrt,
    unit_roundoff,
)
from lipjax.typing import Array

BLOCK = 256
"""Longest sum that one matrix product may form: shorter sums have smaller proved errors."""

FINALS = ("deflated", "wolkowicz_styan", "frobenius")
GRADIENTS = ("bound", "norm")
MAX_ITERS = 16
"""Most products of `num_iters="auto"`."""


def gram_iteration(
    matrix: Array,
    *,
    num_iters: int | str = 4,
    tol: float = 1e-3,
    final: str = "deflated",
    gradient: str | None = None,
) -> Array:
    """Upper bound on the spectral norm of a matrix.

    Args:
        matrix: `float[..., p, q]` or complex; leading axes are a batch.
        num_iters: Number of Gram products, at least 1. The first costs about
            `2 min(p, q)^2 max(p, q)` operations, the others `2 min(p, q)^3`. `"auto"`: as many as it
            takes for `upper <= (1 + tol) * lower`, at most 16, fewer once they no longer help.
        tol: Width of the enclosure that `"auto"` stops at, relative.
        final: How the last iterate is bounded. `"deflated"`: one vector is split off, the tightest;
            `"wolkowicz_styan"`: from its trace and Frobenius norm; `"frobenius"`: as published.
        gradient: `"bound"`: the derivative of the returned number (the deflating vector held
            fixed), at the cost of one more product per iteration; every order. `"norm"`: that of
            the norm itself, `u v^*` for the singular vectors found, nearly free; first order only.
            None: `"bound"`, for `"auto"` `"norm"`, which is all it has.

    Returns:
        `float[...]`, one bound per matrix, in the real dtype of `matrix`.

    Guarantee: at least the largest singular value of the array that was passed in, in its own
    floating-point dtype: the proved rounding error of every product is added. In exact arithmetic
    it is at most `min(p, q)^(2^-(num_iters + 1))` times the norm and never grows with `num_iters`;
    rounding adds a relative excess of about `max(p, q) * 2^-24 * (|W|_F / |W|_2)^2` at most in
    float32. Zero with zero gradient at the zero matrix; NaN if there is a NaN, inf if there is an
    infinity. The gradient is finite for every finite matrix, also at repeated singular values.

    Raises:
        ValueError: for fewer than two axes, an empty axis, a dtype that is not floating or an
            unknown option.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(3.0 <= gram_iteration(jnp.diag(jnp.array([3.0, 1.0, 0.5]))) < 3.001)
        True

    Reference: Delattre et al. (2023), https://arxiv.org/abs/2305.16173, algorithm 1.
    """
    re, im = checked_matrix(matrix)
    check_options(num_iters, tol, final, gradient)
    if num_iters == "auto":
        return gram_enclosure(re, im, num_iters="auto", tol=float(tol), final=final)[1]
    return gram_bound(re, im, num_iters=num_iters, final=final, gradient=gradient or "bound")


class Enclosure(NamedTuple):
    """Two numbers with the truth between them.

    Attributes:
        lower: `float[...]`, never above it.
        upper: `float[...]`, never below it.
    """

    lower: Array
    upper: Array


def enclosure(
    matrix: Array, *, num_iters: int | str = 4, tol: float = 1e-3, final: str = "deflated"
) -> Enclosure:
    """Lower and upper bound on the spectral norm of a matrix, from the same iteration.

    The lower bound is `|W v| / |v|` for the vector that the iteration finds, minus its rounding.

    Args:
        matrix, num_iters, tol, final: As in `gram_iteration`.

    Returns:
        `Enclosure(lower, upper)`, `float[...]` each.

    Guarantee: `lower <= norm <= upper` for the array that was passed in. Both are zero for the zero
    matrix, NaN for a NaN, inf for an infinity. The gradient of both is that of the norm.

    >>> import jax.numpy as jnp
    >>> lower, upper = enclosure(jnp.diag(jnp.array([3.0, 1.0, 0.5])))
    >>> bool(2.999 < lower <= 3.0 <= upper < 3.001)
    True
    """
    re, im = checked_matrix(matrix)
    check_options(num_iters, tol, final, None)
    return Enclosure(*gram_enclosure(re, im, num_iters=num_iters, tol=float(tol), final=final))


@functools.partial(jax.jit, static_argnames=("num_iters", "final", "gradient"))
def gram_bound(
    re: Array, im: Array | None, *, num_iters: int, final="deflated", gradient="bound"
) -> Array:
    """`gram_iteration` of `re + i im`, `float[..., p, q]` each; `im` is None for real matrices."""
    if gradient == "norm":
        return gram_enclosure(re, im, num_iters=num_iters, tol=0.0, final=final)[1]
    scaled_re, scaled_im, outer = _normalized(re, im)
    bound, _ = scaled_bound(scaled_re, scaled_im, num_iters, final)
    return _unscaled(None, bound, outer, re, im)[1]


@functools.partial(jax.jit, static_argnames=("num_iters", "tol", "final"))
def gram_enclosure(re: Array, im: Array | None, *, num_iters, tol: float, final: str):
    """`(lower, upper)` of `re + i im`, with the gradient of the norm."""
    scaled_re, scaled_im, outer = _normalized(re, im)
    lower, upper = scaled_enclosure(scaled_re, scaled_im, num_iters, tol, final)
    return _unscaled(lower, upper, outer, re, im)


def _normalized(re, im):
    """The matrix divided by a power of two near its largest entry, and that power."""
    outer = power_of_two(_largest(re, im))
    return *_scale(re, im, outer), outer


def _unscaled(lower, upper, outer, re, im):
    """Bounds of `_normalized` matrices as bounds of the matrices themselves."""
    parts = [re] if im is None else [re, im]
    # Entries below the smallest normal number may have been read as zero.
    tiny = math.sqrt(2) * re.shape[-2] * re.shape[-1] * float(jnp.finfo(re.dtype).tiny)
    upper = round_up(upper * outer) + jnp.where(_any_nonzero(parts), tiny, 0).astype(re.dtype)
    upper = mark_nonfinite(upper, parts)
    if lower is None:
        return None, upper
    lower = jnp.maximum(round_down(lower * outer) - 2 * tiny, 0)
    lower = jnp.minimum(lower, float(jnp.finfo(re.dtype).max))
    return mark_nonfinite(lower, parts), upper


def scaled_enclosure(re, im, num_iters, tol, final):
    """`(lower, upper)` of a matrix that is finite and not far from 1, with the gradient of the norm."""
    constant_re, constant_im = lax.stop_gradient((re, im))
    if num_iters == "auto":
        lower, upper, v = _adaptive(constant_re, constant_im, tol, final)
    else:
        upper, v = scaled_bound(constant_re, constant_im, num_iters, final, with_vector=True)
        lower = scaled_rayleigh(constant_re, constant_im, v)
    # sigma_1 = Re <u, W v> at its singular vectors: its derivative, added as an exact zero.
    u = _times(constant_re, constant_im, v)
    u = u * safe_reciprocal(safe_norm(u, axis=(-2, -1), keepdims=True))
    linear = jnp.sum(u * _times(re, im, v), axis=(-2, -1))
    zero = jnp.where(jnp.isfinite(linear), linear - lax.stop_gradient(linear), 0)
    return lower + zero, upper + zero


def scaled_bound(re, im, num_iters, final, with_vector=False):
    """The bound of a matrix that is finite and not far from 1.

    With `with_vector` also the vector near the top right singular one that was found.
    """
    swapped = re.shape[-2] < re.shape[-1]
    if swapped:  # same singular values, smaller Gram matrix
        re, im = _transpose(re), None if im is None else _transpose(im)
    product, error = first_product(re, im)
    errors, scales = [error], []
    for _ in range(num_iters - 1):
        scale = power_of_two(_trace(product))
        product, error = square(product, scale, im is not None)
        scales.append(scale)
        errors.append(error)
    v = None
    if with_vector or final == "deflated":
        v = _top_vector(lax.stop_gradient(product), im is not None)
    bound = _FINALS[final](product, im is not None, v)
    for scale, error in zip(reversed(scales), reversed(errors[1:])):
        bound = round_up(safe_sqrt(bound + error) * scale, 3)
    bound = round_up(safe_sqrt(bound + errors[0]), 2)
    return bound, (_column_vector(re, im, v, swapped) if with_vector else None)


def first_product(re, im):
    """`W^* W` of `float[..., p, q]`, packed if complex, and a bound on the rounding (Frobenius).

    Packed, the product is `A^T (A + B) + B^T (B - A)`, whose rounding is at most
    `gamma (|A| |A + B| + |B| |B - A|) <= sqrt(2) gamma |W|_F^2`.
    """
    if im is None:
        return _with_rounding(_self_product(re), sum_length(re.shape[-2]), False)
    left = jnp.concatenate([_transpose(re), _transpose(im)], axis=-1)
    right = jnp.concatenate([re + im, im - re], axis=-2)
    length = 2 * re.shape[-2]
    if length <= BLOCK:
        return _with_rounding(matmul(left, right), length, True)
    step = BLOCK // 2  # what is rounded here weighs most in the end
    starts = range(0, length, step)
    parts = [matmul(left[..., i : i + step], right[..., i : i + step, :]) for i in starts]
    return _with_rounding(sum(parts[1:], parts[0]), step + len(parts), True)


def square(product, scale, packed):
    """The square of a Hermitian `product / scale`, and a bound on its rounding.

    Packed, `M = A + B` has the square `M A + M^T B`, and the rounding is at most
    `gamma |M| (|A| + |B|) <= sqrt(2) gamma |M|_F^2`.
    """
    product = product / scale[..., None, None]
    if not packed:
        return _with_rounding(_self_product(product), sum_length(product.shape[-1]), False)
    flipped = _transpose(product)
    even, odd = (product + flipped) / 2, (product - flipped) / 2
    # One product with operands laid out for it: twice as fast on CPUs as a transposed one.
    left = jnp.concatenate([product, flipped], axis=-1)
    right = jnp.concatenate([even, odd], axis=-2)
    return _with_rounding(matmul(left, right), 2 * product.shape[-1], True)


def _with_rounding(product, length, packed):
    """The Gram product, and a bound on its rounding if entries are sums of `length` terms.

    The trace of the product is the squared Frobenius norm of the factor, up to the same rounding.
    """
    relative = (1.4143 if packed else 1.0) * gamma(length + 10, product.dtype)
    shortfall = 2 * relative + 2 * gamma(product.shape[-1] + 2, product.dtype)  # of the trace
    error = round_up(_trace(product) * (relative / (1 - shortfall)), 8)
    return product, lax.stop_gradient(error)


@jax.custom_jvp
def _self_product(a):
    """`a^T a`, for real matrices."""
    return contract(a, a)


@_self_product.defjvp
def _self_product_jvp(primals, tangents):
    half = contract(tangents[0], primals[0])  # one product; autodiff would take two
    return _self_product(primals[0]), half + _transpose(half)


def sum_length(rows: int) -> int:
    """The number of roundings behind an entry of `contract` of that many rows."""
    return min(rows, BLOCK) + -(-rows // BLOCK)


def contract(a: Array, b: Array) -> Array:
    """`a^T b` over axis -2, as a sum of products over blocks of at most `BLOCK` rows."""
    rows = a.shape[-2]
    if rows <= BLOCK:
        return matmul(_transpose(a), b)
    blocks = -(-rows // BLOCK)

    def split(x):
        pad = [(0, 0)] * (x.ndim - 2) + [(0, blocks * BLOCK - rows), (0, 0)]
        x = jnp.pad(x, pad).reshape(*x.shape[:-2], blocks, BLOCK, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    def add(total, ab):
        return total + matmul(_transpose(ab[0]), ab[1]), None

    a, b = split(a), split(b)
    first = matmul(_transpose(a[0]), b[0])
    return lax.scan(add, first, (a[1:], b[1:]))[0]


def _frobenius_bound(product, packed=None, v=None):
    del packed, v
    rounding = gamma(product.shape[-1] + 8, product.dtype)
    columns = lax.optimization_barrier(jnp.square(product).sum(-2))  # short sums, never a long one
    return round_up(safe_sqrt(round_up(columns.sum(-1) * (1 + 2 * rounding), 2)), 1)


def _wolkowicz_styan_bound(product, packed=None, v=None):
    """From the trace and the Frobenius norm: exact for one spike above a flat rest."""
    del packed, v
    dim = product.shape[-1]
    norm = _frobenius_bound(product)
    trace = _trace(product)
    slack = gamma(dim + 8, product.dtype) * norm * math.sqrt(dim)
    return jnp.minimum(norm, _trace_bound(trace, slack, jnp.square(norm), dim))


def _trace_bound(trace, slack, squared_norm, dim):
    """Wolkowicz-Styan: the largest of `dim` numbers from their sum and the sum of their squares.

    `slack` bounds the error of `trace` and `squared_norm` is not below the truth. The bound grows
    with the trace where it is below its largest value, the norm, which the caller compares with.
    """
    mean = trace / dim + slack
    mean_low = jnp.maximum(trace / dim - slack, 0)
    spread = jnp.maximum(squared_norm - dim * jnp.square(mean_low), 0)
    spread = spread + 16 * unit_roundoff(trace.dtype) * squared_norm
    return round_up(mean + safe_sqrt(spread * ((dim - 1) / dim)), 4)


def _deflated_bound(product, packed, v):
    """Upper bound on the largest eigenvalue of a Hermitian matrix `X`.

    For a unit vector v let `a = v* X v`, `b = |X v - a v|` and let c bound the largest eigenvalue
    of X on the complement of v. The largest eigenvalue of X is at most that of the 2 x 2 matrix
    `[[a, b], [b, c]]`. Here c is the smaller of the Frobenius norm of the complement,
    `c^2 = |X|_F^2 - a^2 - 2 b^2`, and the bound of Wolkowicz and Styan from its trace. Any v is
    valid; one near the top makes it tight.
    """
    if not packed:  # what a product left of asymmetry is rounding and counted there
        product = (product + _transpose(product)) / 2
    dim = product.shape[-1]
    rounding = gamma((2 * dim if packed else dim) + 10, product.dtype)
    norm = _frobenius_bound(product)
    squared_norm = round_up(jnp.square(norm))

    x = _apply(product, v, packed)
    a = jnp.sum(v * x, axis=(-2, -1))
    b = safe_norm(x - a[..., None, None] * v, axis=(-2, -1))

    slack = 12 * rounding * norm
    a_low, b_low = jnp.maximum(a - slack, 0), jnp.maximum(b - slack, 0)
    a, b = a + slack, b + slack
    c_squared = squared_norm - jnp.square(a_low) - 2 * jnp.square(b_low)
    c_squared = jnp.maximum(c_squared, 0) + 16 * unit_roundoff(product.dtype) * squared_norm
    c = round_up(safe_sqrt(c_squared))
    if dim > 2:  # the complement has dim - 1 eigenvalues
        trace = _trace(product) - a_low
        c = jnp.minimum(c, _trace_bound(trace, 2 * slack, c_squared, dim - 1))
    half = (a - c) / 2
    bound = round_up((a + c) / 2 + safe_sqrt(jnp.square(half) + jnp.square(b)), 8)
    return jnp.minimum(norm, bound)


_FINALS = {
    "deflated": _deflated_bound,
    "wolkowicz_styan": _wolkowicz_styan_bound,
    "frobenius": _frobenius_bound,
}


def _top_vector(product, packed):
    """A unit vector near the top: the largest column after two power steps.

    `float[..., q, 1]`, or `float[..., q, 2]` for the real and the imaginary part.
    """
    if not packed:
        product = (product + _transpose(product)) / 2
    v = _largest_column(product, packed)
    for _ in range(2):
        v = unit_vector(_apply(product, v, packed))
    return v


def _largest_column(product, packed):
    squares = jnp.square(product).sum(-2)
    if packed:
        squares = squares + jnp.square(product).sum(-1)
    index = jnp.argmax(squares, axis=-1)[..., None, None]
    column = jnp.take_along_axis(product, index, axis=-1)
    if not packed:
        return column
    row = _transpose(jnp.take_along_axis(product, index, axis=-2))
    return jnp.concatenate([column + row, column - row], axis=-1) / 2


def _apply(product, v, packed):
    """`X v` for a Hermitian X and `v` as `_largest_column` gives it."""
    forth = matmul(product, v)
    if not packed:
        return forth
    back = _transpose(matmul(_transpose(v), product))
    even, odd = (forth + back) / 2, (forth - back) / 2  # A v and B v
    return _complex_sum(even, odd)


def _complex_sum(of_real, of_imaginary):
    """`(A + iB) v` from `A v` and `B v`, real and imaginary parts on the last axis."""
    real = of_real[..., 0] - of_imaginary[..., 1]
    imaginary = of_real[..., 1] + of_imaginary[..., 0]
    return jnp.stack([real, imaginary], axis=-1)


def _times(re, im, v):
    """`W v` for `W = re + i im`, with one or two columns for the parts of `v`."""
    product = einsum("...ij,...jk->...ik", re, v)
    return product if im is None else _complex_sum(product, einsum("...ij,...jk->...ik", im, v))


def _column_vector(re, im, v, swapped):
    """A unit vector near the top right singular vector of the matrix that was passed in.

    `v` belongs to the columns of the matrix that was iterated on, its transpose if `swapped`.
    """
    if not swapped:
        return v
    v = _times(re, im, v)  # its conjugate is the right vector of the transpose
    return unit_vector(v if im is None else jnp.stack([v[..., 0], -v[..., 1]], axis=-1))


def scaled_rayleigh(re, im, v):
    """`|W v| / |v|`, rounded down: a lower bound on the norm, `float[...]`, for any v."""
    rows, cols = re.shape[-2:]
    length = safe_norm(_times(re, im, unit_vector(v)), axis=(-2, -1))
    size = safe_norm(_joined(re, im), axis=(-2, -1))
    slack = 2 * gamma(cols + 8, re.dtype) * round_up(size, 2 * rows * cols)
    short = gamma(2 * rows + 16, re.dtype) + gamma(2 * cols + 16, re.dtype)  # the two lengths
    return jnp.maximum(round_down(length * (1 - short) - slack, 8), 0)


class _Iteration(NamedTuple):
    """Gram iteration with a number of products that is not known while tracing."""

    product: Array
    step: Array  # the number of products so far, minus one
    scales: Array  # [MAX_ITERS, ...]
    errors: Array


def scaled_enclosures(re, im, num_iters, final):
    """As `scaled_enclosure` for a traced `num_iters`; not differentiable."""
    begun, measure = _dynamic(*lax.stop_gradient((re, im)), final)
    state = lax.fori_loop(1, num_iters, lambda _, state: _advance(state, im is not None), begun)
    lower, upper, _ = measure(state)
    return lower, upper


def _adaptive(re, im, tol, final):
    """`(lower, upper, v)`: products until the enclosure is narrow, one count for the batch."""
    begun, measure = _dynamic(re, im, final)
    packed = im is not None

    def unfinished(carry):
        state, lower, upper, _, gained = carry
        wide = gained & (upper > (1 + tol) * lower) & jnp.isfinite(upper)
        return jnp.any(wide) & (state.step < MAX_ITERS - 1)

    def advance(carry):
        state, lower, upper, v, _ = carry
        state = _advance(state, packed)
        below, above, new = measure(state)
        v = jnp.where((below > lower)[..., None, None], new, v)
        lower, above = jnp.maximum(lower, below), jnp.minimum(upper, above)
        gained = upper - above > 0.05 * (upper - lower)
        return state, lower, above, v, gained

    lower, upper, v = measure(begun)
    carry = (begun, lower, upper, v, jnp.ones(lower.shape, bool))
    _, lower, upper, v, _ = lax.while_loop(unfinished, advance, carry)
    return lower, upper, v


def _dynamic(re, im, final):
    """The iteration after one product, and `iteration -> (lower, upper, v)`."""
    original = re, im
    swapped, packed = re.shape[-2] < re.shape[-1], im is not None
    if swapped:
        re, im = _transpose(re), None if im is None else _transpose(im)
    product, error = first_product(re, im)
    ones = jnp.ones((MAX_ITERS, *error.shape), error.dtype)
    begun = _Iteration(product, jnp.zeros((), jnp.int32), ones, (0 * ones).at[0].set(error))

    def measure(state):
        v = _top_vector(state.product, packed)
        bound = _FINALS[final](state.product, packed, v)
        for step in reversed(range(1, MAX_ITERS)):
            wound = round_up(safe_sqrt(bound + state.errors[step]) * state.scales[step], 3)
            bound = jnp.where(step <= state.step, wound, bound)
        v = _column_vector(re, im, v, swapped)
        return scaled_rayleigh(*original, v), round_up(safe_sqrt(bound + state.errors[0]), 2), v

    return begun, measure


def _advance(state: _Iteration, packed) -> _Iteration:
    scale = power_of_two(_trace(state.product))
    product, error = square(state.product, scale, packed)
    step = state.step + 1
    scales, errors = state.scales.at[step].set(scale), state.errors.at[step].set(error)
    return _Iteration(product, step, scales, errors)


def check_options(num_iters, tol, final, gradient) -> None:
    """The options that bounds of matrices and of convolutions share."""
    if num_iters != "auto":
        if isinstance(num_iters, str):
            raise ValueError(f"num_iters is {num_iters!r}; it must be an integer or 'auto'.")
        _checks.integer(1, num_iters=num_iters)
    if isinstance(tol, jax.core.Tracer):
        raise ValueError("tol is traced; it must be a Python number, known at compile time.")
    _checks.within(0.0, 1.0, tol=tol)
    _checks.one_of(FINALS, final=final)
    if gradient is not None:
        _checks.one_of(GRADIENTS, gradient=gradient)
        if num_iters == "auto" and gradient == "bound":
            raise ValueError(
                "gradient is 'bound'; num_iters='auto' has only that of the norm: pass "
                "gradient='norm', or a number for num_iters."
            )


def checked_matrix(matrix):
    """Real and imaginary part of a matrix after checking its rank and dtype; None for a real one."""
    matrix = jnp.asarray(matrix)
    _checks.at_least_rank(2, "[..., p, q]", matrix=matrix)
    _checks.nonempty(matrix=matrix)
    _checks.floating(matrix=matrix)
    return (matrix.real, matrix.imag) if jnp.iscomplexobj(matrix) else (matrix, None)


def unit_vector(v):
    """`v` over its norm, the last two axes being one vector; zero stays zero."""
    v = v / power_of_two(jnp.max(jnp.abs(v), axis=(-2, -1), keepdims=True))
    return v * safe_rsqrt(jnp.sum(jnp.square(v), axis=(-2, -1), keepdims=True))


def _trace(product):
    size = product.shape[-1]
    return product.reshape(*product.shape[:-2], -1)[..., :: size + 1].sum(-1)


def _joined(re, im):
    return re if im is None else jnp.concatenate([re, im], axis=-2)


def _scale(re, im, scale):
    scale = scale[..., None, None]
    return re / scale, None if im is None else im / scale


def _largest(re, im):
    largest = jnp.max(jnp.abs(re), axis=(-2, -1))
    return largest if im is None else jnp.maximum(largest, jnp.max(jnp.abs(im), axis=(-2, -1)))


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


def _any_nonzero(parts, axes=(-2, -1)):
    """Whether any bit but a sign is set: comparisons may read subnormal numbers as zero."""
    found = False
    for part in parts:
        integer = jnp.int32 if part.dtype == jnp.float32 else jnp.int64
        bits = lax.bitcast_convert_type(lax.stop_gradient(part), integer) << 1
        # As a maximum of integers behind a barrier: a comparison of the bits themselves may be
        # fused with one of the numbers.
        some = jnp.abs(bits) | (bits >> (8 * part.dtype.itemsize - 1))
        found = found | (jnp.max(some, axis=axes) != 0) | (jnp.min(some, axis=axes) != 0)
    return lax.optimization_barrier(found)


def mark_nonfinite(bound, parts, axes=(-2, -1)):
    """NaN where an input is NaN, inf where one is infinite."""
    for part in parts:
        bound = jnp.where(jnp.any(jnp.isinf(part), axis=axes), jnp.inf, bound)
    for part in parts:
        bound = jnp.where(jnp.any(jnp.isnan(part), axis=axes), jnp.nan, bound)
    return bound
