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
square is $M M - 2 B B$: two real products of matrices as they lie and no complex number.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax._numerics import as_device_array, is_zero, power_of_two, round_down, round_up
from lipjax.spectral._finals import BOUNDS
from lipjax.spectral._iteration import scaled_bound, scaled_enclosure
from lipjax.typing import Array

FINALS = tuple(BOUNDS)
GRADIENTS = ("bound", "norm")


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
        gradient: `"bound"`: the derivative of the returned number, of every order, at the cost of
            one more product per iteration. `"norm"`: that of the norm itself, `u v^*` for the
            singular vectors found, nearly free; first order only, the second is an error.
            None: `"bound"`, for `"auto"` `"norm"`, which is all it has.

    Returns:
        `float[...]`, one bound per matrix, in the real dtype of `matrix`.

    Guarantee: at least the largest singular value of the array that was passed in (float64 NumPy
    arrays included, where JAX runs in 32 bits; jit and vmap round theirs before): the proved rounding
    error of every product, in the array's own floating-point dtype, is added. In exact arithmetic it
    is at most `min(p, q)^(2^-(num_iters + 1))` times the norm and never grows with `num_iters`;
    rounding adds a relative excess of at most about `(max(p, q) + 20) 2^-24 (|W|_F / |W|_2)^2` in
    float32 once more products no longer help (three times that for complex matrices), and up to ten
    times as much before: `inflation` reports it. Zero with zero gradient at the zero matrix; NaN if
    there is a NaN, inf if there is an infinity. The gradient is finite for every matrix with entries
    up to 1e30 (in float32; `gradient="norm"`: for every finite one), also at repeated singular
    values.

    Raises:
        ValueError: for fewer than two axes, an empty axis, a dtype that is not floating or an
            unknown option.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(3.0 <= gram_iteration(jnp.diag(jnp.array([3.0, 1.0, 0.5]))) < 3.001)
        True

    Reference: Delattre et al. (2023), https://arxiv.org/abs/2305.16173, algorithm 1.
    """
    matrix, lost = as_device_array(matrix, axis=(-2, -1))
    re, im = checked_matrix(matrix)
    check_options(num_iters, tol, final, gradient)
    if num_iters == "auto":
        bound = gram_enclosure(re, im, num_iters="auto", tol=float(tol), final=final)[1]
    else:
        bound = gram_bound(re, im, num_iters=num_iters, final=final, gradient=gradient or "bound")
    return raised(bound, lost)


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
    matrix, NaN for a NaN, inf for an infinity; `lower` is zero beyond two million rows or columns in
    float32, whose sums have no error bound. The gradient of both is that of the norm, of first
    order only.

    >>> import jax.numpy as jnp
    >>> lower, upper = enclosure(jnp.diag(jnp.array([3.0, 1.0, 0.5])))
    >>> bool(2.999 < lower <= 3.0 <= upper < 3.001)
    True
    """
    matrix, lost = as_device_array(matrix, axis=(-2, -1))
    re, im = checked_matrix(matrix)
    check_options(num_iters, tol, final, None)
    found = gram_enclosure(re, im, num_iters=num_iters, tol=float(tol), final=final)
    return widened(Enclosure(*found), lost)


def inflation(matrix: Array, *, num_iters: int = 4, final: str = "deflated") -> Array:
    """How much of `gram_iteration` is proved rounding: the bound over what it is without, minus 1.

    What is left of the distance to the norm is the iteration's own and falls with `num_iters`;
    this part falls in float64 alone.

    Args:
        matrix, num_iters, final: As in `gram_iteration`, a number of products.

    Returns:
        `float[...]`, 0 for the zero matrix, NaN where the bound is not finite.

    >>> import jax
    >>> matrix = jax.random.normal(jax.random.key(0), (64, 64))
    >>> bool(1e-5 < inflation(matrix) < 5e-4)
    True
    """
    matrix, lost = as_device_array(matrix, axis=(-2, -1))
    re, im = checked_matrix(matrix)
    _checks.integer(1, num_iters=num_iters)
    _checks.one_of(FINALS, final=final)
    bound, without = (
        gram_bound(re, im, num_iters=num_iters, final=final, rounding=rounding)
        for rounding in (True, False)
    )
    return relative(raised(bound, lost), without)


def relative(bound, without):
    """`bound / without - 1`, and 0 where both are 0."""
    zero = without == 0
    return lax.stop_gradient(jnp.where(zero, 0, bound / jnp.where(zero, 1, without) - 1))


@functools.partial(jax.jit, static_argnames=("num_iters", "final", "gradient", "rounding"))
def gram_bound(
    re: Array,
    im: Array | None,
    *,
    num_iters: int,
    final="deflated",
    gradient="bound",
    rounding=True,
) -> Array:
    """`gram_iteration` of `re + i im`, `float[..., p, q]` each; `im` is None for real matrices."""
    if gradient == "norm":
        return gram_enclosure(re, im, num_iters=num_iters, tol=0.0, final=final)[1]
    scaled_re, scaled_im, outer = _normalized(re, im)
    bound, _ = scaled_bound(scaled_re, scaled_im, num_iters, final, rounding=rounding)
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
    upper = round_up(upper * outer) + jnp.where(any_nonzero(parts), tiny, 0).astype(re.dtype)
    upper = mark_nonfinite(upper, parts)
    if lower is None:
        return None, upper
    lower = jnp.maximum(round_down(lower * outer) - 2 * tiny, 0)
    lower = jnp.minimum(lower, float(jnp.finfo(re.dtype).max))
    return mark_nonfinite(lower, parts), upper


def _scale(re, im, scale):
    scale = scale[..., None, None]
    return re / scale, None if im is None else im / scale


def _largest(re, im):
    largest = jnp.max(jnp.abs(re), axis=(-2, -1))
    return largest if im is None else jnp.maximum(largest, jnp.max(jnp.abs(im), axis=(-2, -1)))


def raised(upper, lost):
    """An upper bound of an array within `lost` of the one that was bounded, in the norm."""
    return upper if isinstance(lost, float) else round_up(upper + lost)


def widened(bounds: Enclosure, lost) -> Enclosure:
    """As `raised`, from both sides."""
    if isinstance(lost, float):  # nothing was lost
        return bounds
    lower = jnp.maximum(round_down(bounds.lower - lost), 0)
    lower = jnp.where(jnp.isinf(lost), 0, lower)  # the copy overflowed, the array did not
    lower = jnp.where(jnp.isnan(lower), bounds.lower, lower)
    return Enclosure(lower, raised(bounds.upper, lost))


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


def any_nonzero(parts, axes=(-2, -1)):
    """Whether any entry is other than zero, subnormal numbers included."""
    found = (~jnp.all(is_zero(part), axis=axes) for part in parts)
    return functools.reduce(jnp.logical_or, found)


def mark_nonfinite(bound, parts, axes=(-2, -1)):
    """NaN where an input is NaN, inf where one is infinite."""
    for part in parts:
        bound = jnp.where(jnp.any(jnp.isinf(part), axis=axes), jnp.inf, bound)
    for part in parts:
        bound = jnp.where(jnp.any(jnp.isnan(part), axis=axes), jnp.nan, bound)
    return bound
