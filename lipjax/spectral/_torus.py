"""From a convolution with strides, dilation, groups and padding to a plain one on a torus.

The norm of the plain one is, or bounds, the norm asked for; `lipjax.spectral.conv` says why.
"""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from lipjax import _checks

PADDINGS = ("circular", "zero", "any")


class Geometry(NamedTuple):
    """How a kernel is applied; a tuple has one entry per axis."""

    padding: str | tuple[tuple[int, int], ...]
    input_size: tuple[int, ...] | None
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def checked(kernel, padding, input_size, strides, dilation, groups):
    """The kernel as an array and the `Geometry`, or the error that says what is wrong."""
    kernel = jnp.asarray(kernel)
    dims = check_kernel(kernel)
    if isinstance(padding, str):
        _checks.one_of(PADDINGS, padding=padding)
    else:
        padding = _pairs(padding, dims)
    _checks.integer(1, groups=groups)
    if input_size is not None:
        input_size = _checks.per_axis(dims, input_size=input_size)
    return kernel, Geometry(
        padding,
        input_size,
        _checks.per_axis(dims, strides=strides),
        _checks.per_axis(dims, dilation=dilation),
        groups,
    )


def _pairs(padding, dims) -> tuple[tuple[int, int], ...]:
    try:
        pairs = np.asarray(padding)
    except ValueError:  # of different lengths
        pairs = np.zeros(0)
    if pairs.shape != (dims, 2) or not np.issubdtype(pairs.dtype, np.integer) or pairs.min() < 0:
        raise ValueError(
            f"padding is {padding!r}; it must be one of {list(PADDINGS)} or {dims} pairs "
            "(low, high) of integers of at least 0."
        )
    return tuple((int(low), int(high)) for low, high in pairs)


def spread(lost, kernel):
    """How far a change of Frobenius norm `lost` can move the norm of the convolution."""
    if isinstance(lost, float):  # nothing was lost
        return lost
    return lost * (math.sqrt(math.prod(kernel.shape[:-2])) * (1 + 1e-6))


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
