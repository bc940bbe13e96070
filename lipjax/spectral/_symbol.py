"""The largest singular value of a symbol over the frequencies of a torus.

The symbol is one matrix product with the Fourier matrix, and the Gram iteration of all frequencies
a batch, worked on in chunks that a cache holds.
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

from lipjax._numerics import einsum, gamma, round_down, round_up, safe_norm
from lipjax.spectral._iteration import scaled_bound, scaled_enclosure, scaled_enclosures
from lipjax.typing import Array

LEVELS = (2, 4, 6, 10, 16)
"""Products per frequency that `num_iters="auto"` tries in turn where a frequency stays in doubt."""
CPU_FLOATS, DEVICE_FLOATS = 2**21, 2**26
"""Numbers that one chunk of frequencies holds at a time: what a cache holds, or 256 MiB."""


class Options(NamedTuple):
    num_iters: int | str
    tol: float
    final: str
    gradient: str
    chunk: int | None
    lower: bool = False  # whether a lower bound is wanted too
    rounding: bool = True  # whether the proved rounding is added


class Torus(NamedTuple):
    """The static part of a problem on a torus."""

    grid: tuple[int, ...]
    window: tuple[int, ...]
    options: Options


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


class Found(NamedTuple):
    """Bounds on the largest `sigma_1(F(omega))` over a grid, and the frequency of the upper one."""

    lower: Array
    upper: Array
    where: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest(taps, torus: Torus) -> Found:
    """For `taps [groups, number of taps, channels_in, channels_out]`."""
    cos, sin = (jnp.asarray(e, taps.dtype) for e in _fourier(torus))
    if torus.options.num_iters == "auto":
        lower, upper, where = _search_adaptively(taps, cos, sin, torus.options)
    else:
        upper, where = _search(taps, cos, sin, torus.options)
        wanted = torus.options.lower
        lower = _at(taps, where, torus, enclose=True)[0] if wanted else jnp.zeros_like(upper)
    error = symbol_error(taps) if torus.options.rounding else jnp.zeros((), taps.dtype)
    return Found(jnp.maximum(round_down(lower - error), 0), round_up(upper + error), where)


@largest.defjvp
def _largest_jvp(torus, primals, tangents):
    """Only the frequency (and group) of the largest bound has a derivative."""
    found = largest(*primals, torus)
    enclose = torus.options.gradient == "norm"
    _, slope = jax.jvp(
        lambda taps: _at(taps, lax.stop_gradient(found.where), torus, enclose=enclose)[1],
        primals,
        tangents,
    )
    nothing = np.zeros(found.where.shape, jax.dtypes.float0)
    return found, Found(slope, slope, nothing)


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
def _fourier(torus: Torus):
    """Real and imaginary parts of the Fourier matrix, `float64[frequencies, taps]` each."""
    return fourier_matrix(frequencies(torus.grid), torus.grid, torus.window)


def _search(taps, cos, sin, options):
    """The largest bound over all frequencies and groups, and its place."""
    groups, count = taps.shape[0], cos.shape[0]
    chunk = _chunk(taps, count, options.chunk)

    def bounds(re, im):
        return scaled_bound(re, im, options.num_iters, options.final, rounding=options.rounding)[0]

    if count == 1:  # one frequency, which is real
        each = bounds(taps.sum(1), None)[None]
    elif chunk == count:
        each = bounds(*_symbol(taps, cos, sin))
    else:
        rows = _chunked(cos, chunk), _chunked(sin, chunk)
        each = lax.map(lambda cos_sin: bounds(*_symbol(taps, *cos_sin)), rows)
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
    batch = min(chunk, max(16, count // 16))  # refined at a time
    levels = jnp.asarray(LEVELS, jnp.int32)
    last = len(LEVELS) - 1

    def quick(cos_sin):
        re, im = _symbol(taps, *cos_sin)
        return scaled_bound(re, im, LEVELS[0], "wolkowicz_styan")[0]  # no vector to find

    def enclosures(cos_sin, num_iters):
        re, im = _symbol(taps, *cos_sin)
        return scaled_enclosures(re, im, num_iters, options.final)  # [batch, groups] each

    upper = lax.map(quick, (_chunked(cos, chunk), _chunked(sin, chunk)))
    upper = upper.reshape(-1, groups)[:count]

    def unfinished(state):
        lower, upper, level = state
        worst = upper.max(1)
        top = jnp.argmax(worst)
        return (worst[top] > (1 + options.tol) * lower) & (level[top] < last)

    def refine(state):
        lower, upper, level = state
        worst = upper.max(1)
        now = level[jnp.argmax(worst)]
        _, chosen = lax.top_k(jnp.where(level == now, worst, -1), batch)
        active = level[chosen] == now
        below, above = enclosures((cos[chosen], sin[chosen]), levels[now + 1])
        lower = jnp.maximum(lower, jnp.max(jnp.where(active[:, None], below, 0)))
        above = jnp.minimum(above, upper[chosen])
        gained = worst[chosen] - above.max(1) > 0.05 * (worst[chosen] - lower)
        upper = upper.at[chosen].set(jnp.where(active[:, None], above, upper[chosen]))
        raised = jnp.where(gained | (now == 0), now + 1, last)
        level = level.at[chosen].set(jnp.where(active, raised, level[chosen]))
        return lower, upper, level

    none = jnp.zeros_like(upper[:, 0])  # as sharded as the bounds
    state = none[0], upper, none.astype(jnp.int32)
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


def symbol_error(taps):
    """Bound on `|F_computed - F|_F` for every frequency and group.

    Sums of `num_taps` products with Fourier entries that are themselves off: by a rounding in
    float32, by at most 30 in float64, where the phases are summed. Real and imaginary part of a
    term together are as long as the tap.
    """
    _, num_taps, c_in, c_out = taps.shape
    sums = jnp.sum(jnp.abs(taps), axis=1)
    size = round_up(safe_norm(sums, axis=(-2, -1)), num_taps + c_in * c_out + 8)
    length = num_taps + (60 if taps.dtype == jnp.float64 else 8)
    error = round_up(gamma(length, taps.dtype) * jnp.max(size), 8)
    return lax.stop_gradient(error)
