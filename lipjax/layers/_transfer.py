"""Circular convolutions given by one complex matrix per frequency."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax._numerics import einsum, on_host_float64
from lipjax.layers import forms
from lipjax.layers._convolution import add_bias
from lipjax.spectral.proved import proved_norm
from lipjax.typing import Array, Bound


class Transfer(NamedTuple):
    """Weights of a circular convolution of images of one size.

    Attributes:
        kernel: `complex[height, width // 2 + 1, n, m]`, of norm at most 1 at each frequency.
        bias: `float[m]`.
    """

    kernel: Array
    bias: Array


def symbol(kernel: Array, input_size: int | Sequence[int]) -> Array:
    """The transfer matrices of `float[*window, n, m]`, centred as `convolve` does it.

    Returns:
        `complex[height, width // 2 + 1, n, m]`; half of the frequencies, since images are real.
    """
    _checks.ranked(4, "[height, width, channels in, channels out]", kernel=kernel)
    height, width = _checks.per_axis(2, input_size=input_size)
    rows, cols = kernel.shape[:2]
    # exp(2 pi i w (t - centre)): the output at p is the sum over taps of x[p + t - centre].
    kernel = kernel.astype(jnp.complex64 if kernel.dtype == jnp.float32 else jnp.complex128)
    down = _phases(rows, np.fft.fftfreq(height), kernel.dtype)
    across = _phases(cols, np.fft.rfftfreq(width), kernel.dtype)
    return einsum("ft,gs,tsnm->fgnm", down, across, kernel)


def multiply(weights: Transfer, x: Array) -> Array:
    """The convolution of `float[..., height, width, n]`, without its bias; linear in x."""
    x = _checks.array(x=x)
    check(weights, x)
    height, width = x.shape[-3:-1]
    waves = jnp.fft.rfft2(x, axes=(-3, -2))
    waves = einsum("...fgn,fgnm->...fgm", waves, weights.kernel)
    return jnp.fft.irfft2(waves, s=(height, width), axes=(-3, -2)).astype(x.dtype)


def apply(weights: Transfer, x: Array) -> Array:
    """The layer on `float[..., height, width, n]`, of the size that the weights were made for.

    Guarantee: 1-Lipschitz up to the rounding of the transforms. An image that is one pixel narrower
    or wider than the weights were made for, where both have as many frequencies, is not noticed; the
    layer is 1-Lipschitz there too.
    """
    return add_bias(multiply(weights, x), weights.bias)


def check(weights, x):
    """That x is an image of the right size."""
    forms.check_made(weights, Transfer)
    _checks.real_floating(x=x)
    real = jnp.finfo(weights.kernel.dtype).dtype
    _checks.same_dtype(real, "that of the real and imaginary parts of the weights", x=x)
    _checks.at_least_rank(3, "[..., height, width, channels]", x=x)
    height, half, channels, _ = weights.kernel.shape
    if x.shape[-1] != channels:
        raise ValueError(
            f"x has shape {x.shape}; its last axis must have length {channels}, the channels that "
            "the layer was made for."
        )
    if x.shape[-3] != height or x.shape[-2] // 2 + 1 != half:
        raise ValueError(
            f"x has shape {x.shape}; the weights are for images of height {height} and width "
            f"{2 * half - 2} or {2 * half - 1}. Constrain with the input_size of x."
        )


def bound(weights: Transfer) -> Bound:
    """Upper bound on the Lipschitz constant with these weights, proved in float64 on the host.

    The largest norm over the frequencies, which is that of the circular convolution.
    """
    forms.check_made(weights, Transfer)
    return forms.upper_bound(weights, norm_bound(weights.kernel))


def norm_bound(kernel) -> float:
    """At least the largest spectral norm of the matrices."""
    return forms.at_least(proved_norm(kernel).max())


def frozen(constrain, params):
    """`constrain(params)` in float64 on the host, rounded to the precision of the parameters."""
    single = jnp.result_type(jax.tree.leaves(params)[0]) == jnp.float32
    exact = on_host_float64(constrain, params)

    def rounded(x):
        real = jnp.issubdtype(x.dtype, jnp.floating)
        dtype = (jnp.float32 if real else jnp.complex64) if single else x.dtype
        return jnp.asarray(np.asarray(x).astype(dtype))

    return jax.tree.map(rounded, exact)


def _phases(taps, frequencies, dtype):
    offsets = np.arange(taps) - (taps - 1) // 2
    return jnp.asarray(np.exp(2j * np.pi * np.outer(frequencies, offsets)), dtype)
