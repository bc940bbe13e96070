"""The padded convolution and its exact adjoint, for any number of leading axes."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax.typing import Array

PADDINGS = ("zero", "circular")


def check_padding(padding: str) -> None:
    """Only paddings that do not expand: the image is copied at most once."""
    if padding not in PADDINGS:
        raise ValueError(
            f"padding is {padding!r}; it must be 'zero' ('SAME' of other libraries) or 'circular'. "
            "Reflecting and replicating "
            "paddings repeat pixels, so the padded image is longer than the image and the layer "
            "would no longer be 1-Lipschitz."
        )


def check_dtype(kernel: Array, x: Array) -> None:
    """That x has the type of the weights, and that it is one of those that proofs are about."""
    if kernel.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"the weights have dtype {kernel.dtype}; they must be float32 or float64, since no bound "
            "covers the rounding of less. lipjax.nn.rounded makes weights that a smaller type can hold, "
            "with a bound of their own."
        )
    _checks.real_floating(x=x)
    _checks.same_dtype(kernel.dtype, "that of the weights", x=x)


def convolve(x: Array, kernel: Array, *, padding: str = "zero", strides=1) -> Array:
    """Cross-correlation of `float[..., *spatial, c_in]` with `float[*window, c_in, c_out]`.

    `"zero"` is SAME padding; `"circular"` wraps around. The output has `ceil(n / stride)` points
    per axis.
    """
    check_padding(padding)
    dims = kernel.ndim - 2
    if x.ndim < dims + 1:
        raise ValueError(
            f"x has shape {x.shape}; it must have at least {dims + 1} axes, [*spatial, channels]."
        )
    if 0 in x.shape[-dims - 1 :]:
        raise ValueError(f"x has shape {x.shape}; no spatial axis may have length 0.")
    check_dtype(kernel, x)
    if x.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"x has shape {x.shape}; its last axis must have length {kernel.shape[-2]}, the "
            "channels that the layer was made for (images are [..., height, width, channels])."
        )
    strides = _checks.per_axis(dims, strides=strides)
    lead = x.shape[: -dims - 1]
    x = x.reshape(math.prod(lead), *x.shape[-dims - 1 :])
    if padding == "circular":
        pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:dims]]
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap")
    spatial = "DHW"[-dims:]
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        "SAME" if padding == "zero" else "VALID",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    return y.reshape(*lead, *y.shape[1:])


def adjoint(y: Array, kernel: Array, like: Array, *, padding: str = "zero", strides=1) -> Array:
    """The adjoint of `convolve`: `<convolve(x), y> = <x, adjoint(y)>` for every x and y.

    Args:
        y: `float[..., *spatial_out, c_out]`.
        kernel: `float[*window, c_in, c_out]`.
        like: `float[..., *spatial, c_in]`, an x with the shape and sharding of the result.
    """
    (x,) = jax.linear_transpose(
        lambda x: convolve(x, kernel, padding=padding, strides=strides), like
    )(y)
    return x


def add_bias(x: Array, bias: Array) -> Array:
    """`x + bias` over the last axis."""
    return x + jnp.broadcast_to(bias, x.shape)
