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
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks
from lipjax._numerics import einsum, gamma, power_of_two, round_down, round_up, safe_norm
from lipjax.spectral.gram import (
    Enclosure,
    _any_nonzero,
    check_options,
    mark_nonfinite,
    scaled_bound,
    scaled_enclosure,
    scaled_enclosures,
)
from lipjax.spectral.power import zero_padded_lower
from lipjax.typing import Array

PADDINGS = ("circular", "zero", "any")
LEVELS = (2, 4, 6, 10, 16)
"""Products per frequency that `num_iters="auto"` tries in turn where a frequency stays in doubt."""
CPU_FLOATS, DEVICE_FLOATS = 2**20, 2**26
"""Numbers that one chunk of frequencies holds at a time: what a cache holds, or 256 MiB."""


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
            convolution it is the adjoint of: swap its two channel axes, and for a known size give
            that of its output.
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
            stand out; for Gaussian ones a number is faster.
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
    kernel, geometry = _checked(kernel, padding, input_size, strides, dilation, groups)
    options = _options(num_iters, tol, final, gradient, chunk)
    return _conv_bound(kernel, geometry, options)[1]


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
    padding that of `SAME`; for `"any"` at most the supremum over all sizes and paddings.

    >>> import jax.numpy as jnp
    >>> blur = jnp.full((3, 3, 1, 1), 1 / 9)
    >>> lower, upper = conv_enclosure(blur, padding="circular", input_size=8)
    >>> bool(0.9999 < lower <= 1.0 <= upper < 1.0001)
    True
    """
    kernel, geometry = _checked(kernel, padding, input_size, strides, dilation, groups)
    options = _options(num_iters, tol, final, "norm", chunk)._replace(lower=True)
    lower, upper = _conv_bound(kernel, geometry, options)
    if padding not in ("circular", "any"):
        pads = "SAME" if padding == "zero" else geometry.padding
        lower = zero_padded_lower(kernel, **geometry._replace(padding=pads)._asdict())
    elif padding == "any" and max(geometry.strides) > 1:
        size = tuple(32 * s for s in geometry.strides)
        circular = geometry._replace(padding="circular", input_size=size)
        lower = _conv_bound(kernel, circular, options)[0]
    return Enclosure(lower, upper)


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
    for p, n in zip(pads, per_axis(len(pads), input_size=input_size)):
        if p and mode != "constant":
            # The columns of the operator are orthogonal: each output is a copy of one input.
            seen = np.bincount(np.pad(np.arange(n), p, mode=mode))
            norm *= math.sqrt(seen.max()) * (1 + 2**-50)
    return norm


class Geometry(NamedTuple):
    """How a kernel is applied; a tuple has one entry per axis."""

    padding: str | tuple[tuple[int, int], ...]
    input_size: tuple[int, ...] | None
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _Options(NamedTuple):
    num_iters: int | str
    tol: float
    final: str
    gradient: str
    chunk: int | None
    lower: bool = False  # whether a lower bound is wanted too


class _Torus(NamedTuple):
    """The static part of a problem on a torus."""

    grid: tuple[int, ...]
    window: tuple[int, ...]
    options: _Options


@functools.partial(jax.jit, static_argnums=(1, 2))
def _conv_bound(kernel, geometry: Geometry, options: _Options):
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
    found = _largest(taps, _Torus(grid, tuple(window), options))
    tiny = math.prod(kernel.shape) * float(jnp.finfo(kernel.dtype).tiny)
    upper = round_up(found.upper * scale) * factor
    upper = round_up(upper) + jnp.where(_any_nonzero([kernel], axes), tiny, 0).astype(kernel.dtype)
    lower = jnp.maximum(round_down(found.lower * scale) - tiny, 0)
    lower = jnp.minimum(lower, float(jnp.finfo(kernel.dtype).max))
    return tuple(mark_nonfinite(b, [kernel], axes) for b in (lower, upper))


def torus_problem(kernel, *, padding, input_size, strides, dilation):
    """The stride-1, undilated convolution on a torus whose norm bounds the one asked for.

    Args:
        kernel: `[groups, *window, channels_in, channels_out]`.
        padding, input_size, strides, dilation: as in `conv_gram_iteration`, one entry per axis.

    Returns:
        The kernel of that convolution, the points per axis of its torus, and the factor by which
        its norm must be multiplied.
    """
    dims = len(strides)
    window = kernel.shape[1:-2]
    if padding == "any":
        # The symbol without strides covers every subset of the outputs. (With them, a torus whose
        # size the stride does not divide would not be covered.)
        grid = tuple(1 if k == 1 else max(32, 16 * (k - 1)) for k in window)
        factor = 1.0
        for k, m in zip(window, grid):
            factor /= math.cos(math.pi * (k - 1) / (2 * m))
        return kernel, grid, factor
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, window))
    strided = any(s > 1 for s in strides)
    if strided:  # subsampling mixes with dilation: write the zeros out, then fold
        kernel = _space_to_depth(_dilate(kernel, dilation), strides)
        dilation = (1,) * dims
        window = kernel.shape[1:-2]
    if input_size is None:
        raise ValueError(
            f"input_size is None; padding={padding!r} needs the points per axis, for example "
            f"input_size=32. A bound for every size is padding='any'."
        )
    size = input_size
    if padding == "circular":
        for n, s in zip(size, strides):
            if n % s:
                raise ValueError(
                    f"strides is {strides} and input_size is {size}; for circular padding the "
                    f"stride must divide the size. Without strides the norm is at least as large: "
                    "strides=1, or padding='any', which holds for every stride and size."
                )
        torus = tuple(n // s for n, s in zip(size, strides))
        grid = tuple(n // math.gcd(n, d) for n, d in zip(torus, dilation))
    else:
        # Any torus of at least size + half a window; a multiple of the step, so that it divides.
        step = strides if strided else dilation
        pads = [k // 2 for k in reach] if padding == "zero" else [max(p) for p in padding]
        grid = tuple(-(-(n + p) // s) for n, p, s in zip(size, pads, step))
    return kernel, grid, 1.0


def frequencies(grid: Sequence[int]) -> np.ndarray:
    """`int[count, dims]`: one of each pair of opposite frequencies of a torus.

    A real kernel has the same singular values at opposite frequencies.

    >>> len(frequencies((32, 32)))
    514
    """
    grid = np.asarray(grid)
    points = np.stack(np.meshgrid(*[np.arange(m) for m in grid], indexing="ij"), -1)
    points = points.reshape(-1, len(grid))
    opposite = (-points) % grid
    rank = np.ravel_multi_index(points.T, grid)
    return points[rank <= np.ravel_multi_index(opposite.T, grid)]


def fourier_matrix(points: np.ndarray, grid: Sequence[int], window: Sequence[int]):
    """Real and imaginary parts of `exp(-i <omega_f, t>)`, `float64[count, taps]` each.

    The phases are reduced in integers per axis, so that large frequencies lose no accuracy.
    """
    taps = np.array(list(itertools.product(*[range(k) for k in window])))
    phase = np.zeros((len(points), len(taps)))
    for axis, m in enumerate(grid):
        phase += (points[:, axis, None] * taps[None, :, axis]) % m / m
    return np.cos(2 * np.pi * phase), -np.sin(2 * np.pi * phase)


class _Found(NamedTuple):
    """Bounds on the largest `sigma_1(F(omega))` over a grid, and the frequency of the upper one."""

    lower: Array
    upper: Array
    where: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(taps, torus: _Torus) -> _Found:
    """For `taps [groups, number of taps, channels_in, channels_out]`."""
    cos, sin = (jnp.asarray(e, taps.dtype) for e in _fourier(torus))
    if torus.options.num_iters == "auto":
        lower, upper, where = _search_adaptively(taps, cos, sin, torus.options)
    else:
        upper, where = _search(taps, cos, sin, torus.options)
        wanted = torus.options.lower
        lower = _at(taps, where, torus, enclose=True)[0] if wanted else jnp.zeros_like(upper)
    error = _symbol_error(taps)
    return _Found(jnp.maximum(round_down(lower - error), 0), round_up(upper + error), where)


@_largest.defjvp
def _largest_jvp(torus, primals, tangents):
    """Only the frequency (and group) of the largest bound has a derivative."""
    found = _largest(*primals, torus)
    enclose = torus.options.gradient == "norm"
    _, slope = jax.jvp(
        lambda taps: _at(taps, lax.stop_gradient(found.where), torus, enclose=enclose)[1],
        primals,
        tangents,
    )
    nothing = np.zeros(found.where.shape, jax.dtypes.float0)
    return found, _Found(slope, slope, nothing)


def _at(taps, where, torus, *, enclose):
    """`(lower, upper)` at one frequency, differentiable; without `enclose` `(None, upper)`."""
    groups = taps.shape[0]
    kernel = jnp.take(taps, where % groups, axis=0)
    parts = (jnp.take(jnp.asarray(e, taps.dtype), where // groups, axis=0) for e in _fourier(torus))
    re, im = (einsum("t,tio->io", e, kernel) for e in parts)
    im = im if math.prod(torus.grid) > 1 else None  # the only frequency is real
    options = torus.options
    count = LEVELS[2] if options.num_iters == "auto" else options.num_iters
    if enclose:
        return scaled_enclosure(re, im, count, 0.0, options.final)
    return None, scaled_bound(re, im, count, options.final)[0]


@functools.lru_cache(maxsize=32)
def _fourier(torus: _Torus):
    """Real and imaginary parts of the Fourier matrix, `float64[frequencies, taps]` each."""
    return fourier_matrix(frequencies(torus.grid), torus.grid, torus.window)


def _search(taps, cos, sin, options):
    """The largest bound over all frequencies and groups, and its place."""
    groups, count = taps.shape[0], cos.shape[0]
    chunk = _chunk(taps, count, options.chunk)

    def bounds(cos_sin):
        re, im = _symbol(taps, *cos_sin)
        return scaled_bound(re, im, options.num_iters, options.final)[0]

    if count == 1:  # one frequency, which is real
        each = scaled_bound(taps.sum(1), None, options.num_iters, options.final)[0][None]
    elif chunk == count:
        each = bounds((cos, sin))
    else:
        each = lax.map(bounds, (_chunked(cos, chunk), _chunked(sin, chunk)))
    each = each.reshape(-1)[: count * groups]
    where = jnp.argmax(each)
    return each[where], where


def _search_adaptively(taps, cos, sin, options):
    """`(lower, upper, where)`: few products everywhere, more where the largest value may be."""
    groups, count = taps.shape[0], cos.shape[0]
    if count == 1:
        lower, upper = scaled_enclosure(taps.sum(1), None, "auto", options.tol, options.final)
        where = jnp.argmax(upper)
        return jnp.max(lower), upper[where], where
    chunk = _chunk(taps, count, options.chunk)
    levels = jnp.asarray(LEVELS, jnp.int32)
    last = len(LEVELS) - 1

    def enclosures(cos_sin, num_iters):
        re, im = _symbol(taps, *cos_sin)
        return scaled_enclosures(re, im, num_iters, options.final)  # [chunk, groups] each

    everywhere = functools.partial(enclosures, num_iters=levels[0])
    lower, upper = lax.map(everywhere, (_chunked(cos, chunk), _chunked(sin, chunk)))
    lower, upper = (b.reshape(-1, groups)[:count] for b in (lower, upper))

    def unfinished(state):
        lower, upper, level = state
        worst = upper.max(1)
        top = jnp.argmax(worst)
        return (worst[top] > (1 + options.tol) * lower) & (level[top] < last)

    def refine(state):
        lower, upper, level = state
        worst = upper.max(1)
        now = level[jnp.argmax(worst)]
        _, chosen = lax.top_k(jnp.where(level == now, worst, -1), chunk)
        active = level[chosen] == now
        below, above = enclosures((cos[chosen], sin[chosen]), levels[now + 1])
        lower = jnp.maximum(lower, jnp.max(jnp.where(active[:, None], below, 0)))
        above = jnp.minimum(above, upper[chosen])
        gained = worst[chosen] - above.max(1) > 0.05 * (worst[chosen] - lower)
        upper = upper.at[chosen].set(jnp.where(active[:, None], above, upper[chosen]))
        raised = jnp.where(gained | (now == 0), now + 1, last)
        level = level.at[chosen].set(jnp.where(active, raised, level[chosen]))
        return lower, upper, level

    state = (jnp.max(lower), upper, jnp.zeros(count, jnp.int32))
    lower, upper, _ = lax.while_loop(unfinished, refine, state)
    where = jnp.argmax(upper)
    return lower, upper.reshape(-1)[where], where


def _symbol(taps, cos, sin):
    """Real and imaginary parts of `F(omega)`, `float[frequencies, groups, ci, co]` each."""
    return tuple(einsum("ft,gtio->fgio", e, taps) for e in (cos, sin))


def _chunked(rows, chunk):
    """`[n, ...]` to `[ceil(n / chunk), chunk, ...]`, the last row repeated."""
    pad = -rows.shape[0] % chunk
    rows = jnp.pad(rows, ((0, pad), (0, 0)), mode="edge")
    return rows.reshape(-1, chunk, rows.shape[1])


def _chunk(taps, count, chunk) -> int:
    """Frequencies at a time: at most `chunk`, spread evenly."""
    if chunk is None:
        groups, _, c_in, c_out = taps.shape
        floats = CPU_FLOATS if jax.default_backend() == "cpu" else DEVICE_FLOATS
        chunk = max(1, floats // (groups * (2 * c_in * c_out + 3 * min(c_in, c_out) ** 2)))
    return -(-count // -(-count // chunk))


def _symbol_error(taps):
    """Bound on `|F_computed - F|_F` for every frequency and group.

    Sums of `num_taps` products with Fourier entries that are themselves off by at most 30 u (the
    phases are summed in float64, which matters for float64 kernels alone).
    """
    _, num_taps, c_in, c_out = taps.shape
    sums = jnp.sum(jnp.abs(taps), axis=1)
    size = round_up(safe_norm(sums, axis=(-2, -1)), num_taps + c_in * c_out + 8)
    error = round_up(math.sqrt(2) * gamma(num_taps + 60, taps.dtype) * jnp.max(size), 8)
    return lax.stop_gradient(error)


def _checked(kernel, padding, input_size, strides, dilation, groups):
    kernel = jnp.asarray(kernel)
    dims = check_kernel(kernel)
    if isinstance(padding, str):
        _checks.one_of(PADDINGS, padding=padding)
    else:
        padding = _pairs(padding, dims)
    _checks.integer(1, groups=groups)
    if input_size is not None:
        input_size = per_axis(dims, input_size=input_size)
    return kernel, Geometry(
        padding,
        input_size,
        per_axis(dims, strides=strides),
        per_axis(dims, dilation=dilation),
        groups,
    )


def _pairs(padding, dims) -> tuple[tuple[int, int], ...]:
    pairs = np.asarray(padding)
    if pairs.shape != (dims, 2) or not np.issubdtype(pairs.dtype, np.integer) or pairs.min() < 0:
        raise ValueError(
            f"padding is {padding!r}; it must be one of {list(PADDINGS)} or {dims} pairs "
            "(low, high) of integers of at least 0."
        )
    return tuple((int(low), int(high)) for low, high in pairs)


def _options(num_iters, tol, final, gradient, chunk) -> _Options:
    check_options(num_iters, tol, final, gradient)
    if chunk is not None:
        _checks.integer(1, chunk=chunk)
    gradient = gradient or ("norm" if num_iters == "auto" else "bound")
    return _Options(num_iters, float(tol), final, gradient, chunk)


def check_kernel(kernel) -> int:
    """The number of window axes of a kernel, after checking its rank and dtype."""
    _checks.ranked((3, 4, 5), "[*window, channels_in, channels_out]", kernel=kernel)
    _checks.nonempty(kernel=kernel)
    _checks.real_floating(kernel=kernel)
    return kernel.ndim - 2


def split_groups(kernel, groups: int):
    """`[*window, ci, co]` to `[groups, *window, ci, co / groups]`."""
    c_out = kernel.shape[-1]
    if c_out % groups:
        raise ValueError(f"groups is {groups}; it must divide the {c_out} output channels.")
    kernel = kernel.reshape(*kernel.shape[:-1], groups, c_out // groups)
    return jnp.moveaxis(kernel, -2, 0)


def per_axis(dims: int, **named) -> tuple[int, ...]:
    """One positive integer per spatial axis, from an integer or a sequence of them."""
    ((name, value),) = named.items()
    values = (value,) * dims if isinstance(value, int | np.integer) else tuple(value)
    if len(values) != dims:
        raise ValueError(f"{name} is {value!r}; it must be an integer or have {dims} entries.")
    for entry in values:
        if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or entry < 1:
            raise ValueError(f"{name} is {value!r}; its entries must be integers of at least 1.")
    return tuple(int(entry) for entry in values)


def _dilate(kernel, dilation):
    pads = [(0, 0, 0), *((0, 0, d - 1) for d in dilation), (0, 0, 0), (0, 0, 0)]
    return lax.pad(kernel, jnp.zeros((), kernel.dtype), pads)


def _space_to_depth(kernel, strides):
    """A strided convolution is a plain one on blocks: tap `s u + a` becomes tap u, channel a."""
    groups, *window, c_in, c_out = kernel.shape
    pads = [(0, 0), *((0, -k % s) for k, s in zip(window, strides)), (0, 0), (0, 0)]
    kernel = jnp.pad(kernel, pads)
    folded = [-(-k // s) for k, s in zip(window, strides)]
    shape = [groups, *itertools.chain(*zip(folded, strides)), c_in, c_out]
    dims = len(strides)
    outer = [1 + 2 * i for i in range(dims)]
    inner = [2 + 2 * i for i in range(dims)]
    kernel = kernel.reshape(shape).transpose(0, *outer, *inner, 2 * dims + 1, 2 * dims + 2)
    return kernel.reshape(groups, *folded, math.prod(strides) * c_in, c_out)
