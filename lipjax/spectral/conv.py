r"""Spectral norms of convolutions: the symbol, its Gram iteration, and the theorems of padding.

A convolution with kernel $K$ has the symbol $F(\omega) = \sum_t K_t e^{-i \langle\omega, t\rangle}$,
a `channels_in x channels_out` matrix for every frequency. Write $C_m$ for the convolution on a
torus with $m$ points per axis and $Z_n$ for the zero-padded one on $n$ points per axis.

* Circular: $\|C_m\| = \max_j \sigma_1(F(2\pi j / m))$.
* Zero padding: $Z_n$ is a submatrix of $C_m$ for every $m \ge n + p$, where $p$ is the larger
  padding of the two ends; so $\|Z_n\| \le \|C_m\|$. (The circular norm at $n$ itself is *not* a
  bound for zero padding.)
* Any size, circular or zero-padded: with $d = (k - 1) / 2$ per axis,
  $\sup_\omega \sigma_1(F(\omega)) \le \|C_m\| \prod 1 / \cos(\pi d / m)$ for $m > 2 d$, by the
  theorem of M. Riesz on trigonometric polynomials.

The first is classical: the Fourier basis makes $C_m$ block diagonal. For the second, an entry of
$Z_n$ is one tap of the kernel, and the same entry of $C_m$ sums all taps that agree with it modulo
$m$: for $m \ge n + p$ there is no other. For the third, fix the singular vectors $u, v$ at the
maximizing frequency. Along one axis the real part of $u^* F(\omega) v$, with its phase at the
maximum removed, is a trigonometric polynomial of degree $d$ that attains its maximum there, falls
from it no faster than $\cos(d x)$, and has a grid point within $\pi / m$.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax._numerics import as_device_array, power_of_two, round_down, round_up
from lipjax.spectral._symbol import Options, Torus, largest
from lipjax.spectral._torus import Geometry, checked, split_groups, spread, torus_problem
from lipjax.spectral.gram import (
    Enclosure,
    any_nonzero,
    check_options,
    mark_nonfinite,
    raised,
    relative,
    widened,
)
from lipjax.spectral.power import zero_padded_lower
from lipjax.typing import Array


def conv_gram_iteration(
    kernel: Array,
    *,
    padding: str | Sequence[tuple[int, int]],
    input_size: int | Sequence[int] | None = None,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    num_iters: int | str = 4,
    tol: float = 1e-3,
    final: str = "deflated",
    gradient: str | None = None,
    chunk: int | None = None,
) -> Array:
    """Upper bound on the spectral norm of a convolution, as an operator on whole images.

    Args:
        kernel: `float[*window, channels_in / groups, channels_out]` with one, two or three window
            axes (HWIO, as in JAX and Flax). A transposed convolution has the norm of the
            convolution it is the adjoint of: swap its two channel axes (within each group), and
            for a known size give that of its output.
        padding: `"circular"`: periodic, at `input_size`. `"zero"`: at most half a window of zeros
            at each end (`SAME`, also `VALID`), at `input_size`. Pairs `(low, high)`: that many
            zeros at the ends of each axis, at `input_size`. `"any"`: circular or zero padding
            of any amount at any input size; `input_size` is not used. Strides are covered and
            not made use of: with a known size `"zero"` gives a smaller bound.
        input_size: Points per spatial axis, one integer or one per axis.
        strides: Step per axis. For circular padding it must divide `input_size`.
        dilation: Distance between taps per axis.
        groups: Number of channel groups; the norm is the largest of the groups' norms.
        num_iters: Number of Gram products per frequency, at least 1. `"auto"`: two at every
            frequency, and more at those that may be the largest, until the bound is within `tol`
            of a lower bound or stops falling. Fast for trained kernels, whose largest frequencies
            stand out; for wide Gaussian ones a number is faster.
        tol: As in `gram_iteration`.
        final: As in `gram_iteration`.
        gradient: As in `gram_iteration`; it costs one frequency.
        chunk: Frequencies that are worked on at a time: memory is about
            `4 chunk (2 channels_in + 3 min(channels)) channels_out` bytes. None chooses.

    Returns:
        `float[]`, the bound.

    Guarantee: at least the largest singular value of the convolution with exactly the numbers of
    `kernel`, in its floating-point dtype. `"circular"` converges to the norm as `num_iters`
    grows; `"zero"` to the norm on a slightly larger torus; `"any"` to at most
    `1 / prod cos(pi / 32)` times the supremum over all sizes (1.0097 for a 3 x 3 window). Zero
    with zero gradient for the zero kernel, NaN for a NaN, inf for an infinity.

    Raises:
        ValueError: for an unknown padding (reflecting paddings have a norm above 1 of their own,
            see `padding_norm`), a missing `input_size`, groups or strides that do not divide, a
            wrong rank or dtype, an unknown option.

    Example:
        >>> import jax.numpy as jnp
        >>> blur = jnp.full((3, 3, 1, 1), 1 / 9)
        >>> bool(1.0 <= conv_gram_iteration(blur, padding="circular", input_size=8) < 1.0001)
        True

    Reference: Delattre et al. (2023), https://arxiv.org/abs/2305.16173; for zero padding the
    embedding above replaces the bound of Delattre et al. (2024), https://arxiv.org/abs/2402.00240.
    """
    kernel, lost = as_device_array(kernel)
    kernel, geometry = checked(kernel, padding, input_size, strides, dilation, groups)
    options = _options(num_iters, tol, final, gradient, chunk)
    bound = _conv_bound(kernel, geometry, options)[1]
    return raised(bound, spread(lost, kernel))


def conv_enclosure(
    kernel: Array,
    *,
    padding: str | Sequence[tuple[int, int]],
    input_size: int | Sequence[int] | None = None,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    num_iters: int | str = 4,
    tol: float = 1e-3,
    final: str = "deflated",
    chunk: int | None = None,
) -> Enclosure:
    """Lower and upper bound on the spectral norm of a convolution.

    The lower bound is what the convolution does to one vector, minus its rounding: at the largest
    frequency for circular padding, found by 32 steps of power iteration for zero padding.

    Args:
        kernel, padding, input_size, strides, dilation, groups, num_iters, tol, final, chunk: As in
            `conv_gram_iteration`.

    Returns:
        `Enclosure(lower, upper)`, `float[]` each.

    Guarantee: `upper` is that of `conv_gram_iteration`. `lower` is at most the norm, for zero
    padding that of `SAME`; for `"any"` at most the supremum over all sizes and paddings. The
    gradient of both is that of the norm at the vector found: first derivatives only, finite at zero.

    >>> import jax.numpy as jnp
    >>> blur = jnp.full((3, 3, 1, 1), 1 / 9)
    >>> lower, upper = conv_enclosure(blur, padding="circular", input_size=8)
    >>> bool(0.9999 < lower <= 1.0 <= upper < 1.0001)
    True
    """
    kernel, lost = as_device_array(kernel)
    kernel, geometry = checked(kernel, padding, input_size, strides, dilation, groups)
    options = _options(num_iters, tol, final, "norm", chunk)._replace(lower=True)
    lower, upper = _conv_bound(kernel, geometry, options)
    if padding not in ("circular", "any"):
        pads = "SAME" if padding == "zero" else geometry.padding
        lower = zero_padded_lower(kernel, **geometry._replace(padding=pads)._asdict())
    elif padding == "any" and max(geometry.strides) > 1:
        size = tuple(32 * s for s in geometry.strides)
        circular = geometry._replace(padding="circular", input_size=size)
        lower = _conv_bound(kernel, circular, options)[0]
    return widened(Enclosure(lower, upper), spread(lost, kernel))


def conv_inflation(
    kernel: Array,
    *,
    padding: str | Sequence[tuple[int, int]],
    input_size: int | Sequence[int] | None = None,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    num_iters: int = 4,
    final: str = "deflated",
    chunk: int | None = None,
) -> Array:
    """How much of `conv_gram_iteration` is proved rounding: see `lipjax.spectral.inflation`.

    Args:
        kernel, padding, input_size, strides, dilation, groups, num_iters, final, chunk: As in
            `conv_gram_iteration`, with a number of products.

    Returns:
        `float[]`, 0 for the zero kernel, NaN where the bound is not finite.

    >>> import jax
    >>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 16, 16))
    >>> bool(1e-6 < conv_inflation(kernel, padding="circular", input_size=8) < 1e-4)
    True
    """
    kernel, lost = as_device_array(kernel)
    kernel, geometry = checked(kernel, padding, input_size, strides, dilation, groups)
    _checks.integer(1, num_iters=num_iters)
    options = _options(num_iters, 0.0, final, "bound", chunk)
    bound = _conv_bound(kernel, geometry, options)[1]
    without = _conv_bound(kernel, geometry, options._replace(rounding=False))[1]
    return relative(raised(bound, spread(lost, kernel)), without)


def padding_norm(mode: str, pad: int | Sequence[int], input_size: int | Sequence[int]) -> float:
    """Norm of the operator that pads an image, which a `VALID` convolution follows.

    A convolution with reflecting or replicating padding has at most this times the norm that
    `conv_gram_iteration(..., padding="any")` bounds.

    Args:
        mode: `"constant"` (zeros), `"reflect"`, `"symmetric"`, `"edge"` or `"wrap"`, as in
            `jnp.pad`.
        pad: Points added at each end, one integer per spatial axis, or one for a single axis.
        input_size: Points per spatial axis, one integer or one per axis.

    Returns:
        The product over the axes of the square root of how often one point is seen: 1 for zeros,
        `sqrt(2)` for a reflection (`sqrt(3)` if it reaches the middle from both ends),
        `sqrt(pad + 1)` for edge. Rounded up.

    Raises:
        ValueError: for an unknown mode or a negative pad.

    >>> round(padding_norm("reflect", (1, 1), 32), 4)
    2.0
    """
    _checks.one_of(("constant", "reflect", "symmetric", "edge", "wrap"), mode=mode)
    pads = (pad,) if isinstance(pad, int | np.integer) else tuple(pad)
    _checks.integer(0, **{f"pad[{axis}]": p for axis, p in enumerate(pads)})
    norm = 1.0
    for p, n in zip(pads, _checks.per_axis(len(pads), input_size=input_size)):
        if p and mode != "constant":
            # The columns of the operator are orthogonal: each output is a copy of one input.
            seen = np.bincount(np.pad(np.arange(n), p, mode=mode))
            norm *= math.sqrt(seen.max()) * (1 + 2**-50)
    return norm


@functools.partial(jax.jit, static_argnums=(1, 2))
def _conv_bound(kernel, geometry: Geometry, options: Options):
    """Lower bound on the torus and upper bound."""
    grouped, grid, factor = torus_problem(
        split_groups(kernel, geometry.groups),
        padding=geometry.padding,
        input_size=geometry.input_size,
        strides=geometry.strides,
        dilation=geometry.dilation,
    )
    axes = tuple(range(kernel.ndim))
    scale = power_of_two(jnp.max(jnp.abs(kernel)))
    groups, *window, c_in, c_out = grouped.shape
    if math.prod(window) == 1:  # the same matrix at every frequency
        grid = (1,) * len(window)
    taps = (grouped / scale).reshape(groups, -1, c_in, c_out)
    found = largest(taps, Torus(grid, tuple(window), options))
    tiny = math.prod(kernel.shape) * float(jnp.finfo(kernel.dtype).tiny)
    upper = round_up(found.upper * scale) * factor
    upper = round_up(upper) + jnp.where(any_nonzero([kernel], axes), tiny, 0).astype(kernel.dtype)
    lower = jnp.maximum(round_down(found.lower * scale) - tiny, 0)
    lower = jnp.minimum(lower, float(jnp.finfo(kernel.dtype).max))
    return tuple(mark_nonfinite(b, [kernel], axes) for b in (lower, upper))


def _options(num_iters, tol, final, gradient, chunk) -> Options:
    check_options(num_iters, tol, final, gradient)
    if chunk is not None:
        _checks.integer(1, chunk=chunk)
    gradient = gradient or ("norm" if num_iters == "auto" else "bound")
    return Options(num_iters, float(tol), final, gradient, chunk)
