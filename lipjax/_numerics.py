"""Floating point that does not lie: zero-safe functions and proved rounding.

The gradients of `abs`, `norm`, `sqrt` and `rsqrt` at zero are 1, NaN, inf and NaN in JAX; here they
are zero. The rounding helpers implement the standard model: `u = eps / 2` is the unit roundoff and
`gamma(n) = n u / (1 - n u)` bounds the relative error of a sum of n products in any order.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

HIGHEST = lax.Precision.HIGHEST
"""The precision of every product inside a bound: float32 stays float32 on every backend."""


def unit_roundoff(dtype) -> float:
    """`u`: half the distance from 1 to the next number of `dtype` (complex: of its parts)."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype) -> float:
    """Relative error of a sum of `n` products in any order: `n u / (1 - n u)`.

    >>> round(gamma(100, jnp.float32) / 100 * 2**24, 4)
    1.0
    """
    nu = n * unit_roundoff(dtype)
    if nu >= 0.5:
        raise ValueError(f"n is {n}; sums of that length have no error bound in {dtype}.")
    return nu / (1 - nu)


def round_up(x, num_roundings: int = 1):
    """At least the exact value behind a nonnegative `x` that took `num_roundings` roundings.

    `num_roundings` counts operations whose relative error is at most `u`. Zero, inf and NaN stay.
    """
    return x * (1 + (num_roundings + 2) * 2 * unit_roundoff(x.dtype))


def round_down(x, num_roundings: int = 1):
    """At most the exact value behind a nonnegative `x` that took `num_roundings` roundings."""
    return x * (1 - (num_roundings + 2) * 2 * unit_roundoff(x.dtype))


def safe_abs(x):
    """`|x|` with derivative 0 at 0 (JAX has 1 there, which is no symmetric choice)."""
    return x * lax.stop_gradient(jnp.sign(x))


@jax.custom_jvp
def safe_sqrt(x):
    """`sqrt(x)` with derivative 0 at 0; negative rounding noise counts as 0, NaN stays NaN."""
    return jnp.sqrt(jnp.maximum(x, 0))


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    y = safe_sqrt(*primals)
    return y, tangents[0] * 0.5 * safe_reciprocal(y)


@jax.custom_jvp
def safe_rsqrt(x):
    """`1 / sqrt(x)`, and 0 with derivative 0 where `x` is 0."""
    usable = jnp.logical_not(x <= 0)
    return jnp.where(usable, lax.rsqrt(jnp.where(usable, x, 1)), 0)


@safe_rsqrt.defjvp
def _safe_rsqrt_jvp(primals, tangents):
    y = safe_rsqrt(*primals)
    return y, tangents[0] * y * y * y * (-0.5)  # x^(-3/2) alone could overflow


@jax.custom_jvp
def safe_reciprocal(x):
    """`1 / x`, and 0 with derivative 0 where `x` is 0."""
    usable = x != 0
    return jnp.where(usable, 1 / jnp.where(usable, x, 1), 0)


@safe_reciprocal.defjvp
def _safe_reciprocal_jvp(primals, tangents):
    y = safe_reciprocal(*primals)
    return y, -(tangents[0] * y) * y  # x^-2 alone could overflow


def safe_log(x, at_zero: float = 0.0):
    """`log(x)`, and `at_zero` with derivative 0 where `x` is 0."""
    usable = jnp.logical_not(x <= 0)
    return jnp.where(usable, jnp.log(jnp.where(usable, x, 1)), at_zero)


def safe_norm(x, axis=None, keepdims: bool = False):
    """Euclidean norm, neither overflowing nor underflowing, with derivative 0 at 0.

    Args:
        x: `float[...]`.
        axis: The axes of one vector; all of them when None.
        keepdims: Whether those axes stay, with length 1.

    >>> float(jax.grad(safe_norm)(jnp.zeros(3)).sum())
    0.0
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    scale = power_of_two(largest)
    norm = safe_sqrt(jnp.sum(jnp.square(x / scale), axis=axis, keepdims=True)) * scale
    return norm if keepdims else jnp.squeeze(norm, axis=axis)


def power_of_two(x):
    """A power of two near `x` (positive and finite), at most `x` unless x is tiny; else 1.

    Multiplying or dividing by it is exact unless the result leaves the normal range. The power
    and its reciprocal are normal numbers (compilers divide by multiplying with the reciprocal).
    The result carries no gradient.
    """
    x = lax.stop_gradient(x)
    limits, width = jnp.finfo(x.dtype), 8 * x.dtype.itemsize
    integer = {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}[width]
    bits = lax.bitcast_convert_type(x, integer) & np.array(np.inf, x.dtype).view(integer)
    power = lax.bitcast_convert_type(bits, x.dtype)  # the exponent without the digits
    largest = 2.0 ** (-int(limits.minexp) - 1)
    usable = (x > 0) & jnp.isfinite(x)
    return jnp.where(usable, jnp.clip(power, 1 / largest, largest), 1)


def over_square(x, scale):
    """`x / scale^2` in two steps: the square may leave the range, and compilers would form it."""
    return lax.optimization_barrier(x / scale) / scale


def times_square(x, scale):
    """`x * scale^2` in two steps, as `over_square`."""
    return lax.optimization_barrier(x * scale) * scale


def is_zero(x):
    """Whether every bit of each entry but the sign is zero: false for subnormal numbers.

    Comparisons of floats, and of their bits as one integer where compilers see through that, may
    read subnormal numbers as zero. Halves of the bits are no floats to anybody.
    """
    if x.dtype.itemsize == 1:
        return lax.bitcast_convert_type(lax.stop_gradient(x), jnp.uint8) & 0x7F == 0
    halves = lax.bitcast_convert_type(lax.stop_gradient(x), jnp.uint16)
    halves = halves[..., None] if x.dtype.itemsize == 2 else halves
    mask = np.full(halves.shape, 0xFFFF, np.uint16)
    mask[..., -1] = 0x7FFF
    return jnp.max(halves & jnp.asarray(mask), axis=-1) == 0


def as_device_array(x, axis=None):
    """`jnp.asarray(x)`, and a bound on the Euclidean norm of what that lost.

    NumPy arrays and Python numbers in float64 become float32 unless JAX runs in 64 bits. A bound
    of the array that was passed in has to count the difference.

    Args:
        x: Anything that `jnp.asarray` takes.
        axis: Axes that the norm runs over; all when None.

    Returns:
        The array, and 0.0 or `float[...]` in its real dtype, rounded up: inf where a number became
        infinite, zero where nothing was lost.

    >>> array, lost = as_device_array([1.0, 0.1])
    >>> bool(0 < lost < 3e-9)
    True
    """
    if isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "fc":
        x = x.astype(x.dtype.newbyteorder("="))  # files may hold the other order of bytes
        if x.dtype.itemsize > (16 if x.dtype.kind == "c" else 8):
            raise ValueError(
                f"the array has dtype {x.dtype}, which JAX does not know; round it to float64, and "
                "count what that loses."
            )
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{x!r} is no array; it must be one, or numbers in lists of equal length."
        ) from error
    leaves = jax.tree.leaves(x)
    if all(isinstance(leaf, jax.Array) for leaf in leaves):
        return array, 0.0
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    host = None if traced else np.asarray(jax.device_get(x))
    if host is None or host.dtype.kind not in "fc" or host.dtype == array.dtype:
        return array, 0.0
    if host.ndim < np.size(axis):  # too few axes, which the caller refuses by name
        return array, 0.0
    with np.errstate(all="ignore"):
        difference = np.abs(host - host.astype(array.dtype)).astype(np.float64)
    largest = np.max(np.where(np.isnan(difference), 0, difference), axis=axis, initial=0)
    lost = largest * math.sqrt(max(1, host.size // max(1, largest.size))) * (1 + 1e-6)
    tiny = float(jnp.finfo(array.dtype).tiny)
    return array, jnp.asarray(np.where(lost > 0, np.maximum(lost, tiny), 0), array.real.dtype)


def as_class(label):
    """Integer labels as int32; those that int32 cannot hold, which are no classes, become -1."""
    if label.dtype.itemsize < 8:
        return label.astype(jnp.int32)
    return jnp.where((label >= 0) & (label < 2**31), label, -1).astype(jnp.int32)


def matmul(a, b):
    """`a @ b` at full precision on every backend."""
    return jnp.matmul(a, b, precision=HIGHEST)


def einsum(spec: str, *operands):
    """`jnp.einsum` at full precision on every backend."""
    return jnp.einsum(spec, *operands, precision=HIGHEST)


def on_host_float64(fn, *args):
    """`fn(*args)` in float64 on the CPU, whatever the default device and precision.

    The one place where a certificate leaves the accelerator: real arrays become float64 (exactly),
    the rest passes unchanged, and the result comes back as NumPy arrays. Not for use under jit.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        raise ValueError(
            "freeze and bound run in float64 on the host, so not under jit, vmap or grad; call them "
            "outside (inside, lipjax.nn.constrain makes the weights)."
        )
    cpu = jax.local_devices(backend="cpu")[0]
    host = jax.tree.map(_to_float64, jax.device_get(args))
    with jax.enable_x64(True), jax.default_device(cpu):
        return jax.device_get(fn(*host))


def _to_float64(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if np.issubdtype(leaf.dtype, np.floating) else leaf
