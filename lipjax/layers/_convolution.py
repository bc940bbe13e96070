"""The padded convolution and its exact adjoint, for any number of leading axes."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax.layers import _narrow, _winograd
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
    _checks.at_least_rank(
        3, "[*window, in, out]; a dense kernel goes to apply_dense", kernel=kernel
    )
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
    if set(strides) == {1} and _narrow.is_narrow(kernel):
        y = _narrow_convolved(x, kernel, padding)
    elif set(strides) == {1} and _winograd.pays(x, kernel):
        y = _tiled_convolved(x, kernel, padding)
    else:
        y = _convolved(x, kernel, padding, strides)
    return y.reshape(*lead, *y.shape[1:])


def adjoint(y: Array, kernel: Array, like: Array, *, padding: str = "zero", strides=1) -> Array:
    """The adjoint of `convolve`: `<convolve(x), y> = <x, adjoint(y)>` for every x and y.

    Args:
        y: `float[..., *spatial_out, c_out]`.
        kernel: `float[*window, c_in, c_out]`.
        like: `float[..., *spatial, c_in]`, an x with the shape and sharding of the result.
    """
    dims = kernel.ndim - 2
    strides = _checks.per_axis(dims, strides=strides)
    if set(strides) == {1}:
        images = y.reshape(math.prod(y.shape[: -dims - 1]), *y.shape[-dims - 1 :])
        if _narrow.is_narrow(kernel):
            return _narrow_adjoint(images, kernel, padding).reshape(like.shape)
        if _winograd.pays(images, kernel):
            return _tiled_adjoint(images, kernel, padding).reshape(like.shape)
    (x,) = jax.linear_transpose(
        lambda x: convolve(x, kernel, padding=padding, strides=strides), like
    )(y)
    return x


def _convolved(x, kernel, padding, strides=1):
    """The convolution of `float[b, *spatial, c_in]`, as one operation of XLA."""
    dims = kernel.ndim - 2
    strides = _checks.per_axis(dims, strides=strides)
    if padding == "circular":
        pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:dims]]
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap")
    spatial = "DHW"[-dims:]
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        "SAME" if padding == "zero" else "VALID",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )


def _adjoint(y, kernel, padding):
    """The adjoint of `_convolved` with stride 1 in x."""
    like = jnp.broadcast_to(y[..., :1], (*y.shape[:-1], kernel.shape[-2]))
    (x,) = jax.linear_transpose(lambda x: _convolved(x, kernel, padding), like)(y)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _narrow_convolved(x, kernel, padding):
    """`_convolved` with stride 1, for kernels that `_narrow` has faster derivatives of."""
    return _convolved(x, kernel, padding)


@_narrow_convolved.defjvp
def _narrow_convolved_jvp(padding, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    fast = _on_cpus(_narrow.scattered, _narrow_convolved, padding)
    # Without the barrier XLA adds the shifts again for the backward pass, and keeps all products for it.
    value = lax.optimization_barrier(fast(x, kernel))
    # The gradient for x transposes the first of these two, which XLA does well.
    return value, _convolved(dx, kernel, padding) + fast(x, dkernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _narrow_adjoint(y, kernel, padding):
    """`_adjoint`, for kernels that `_narrow` has faster derivatives of."""
    return _adjoint(y, kernel, padding)


@_narrow_adjoint.defjvp
def _narrow_adjoint_jvp(padding, primals, tangents):
    (y, kernel), (dy, dkernel) = primals, tangents
    fast = _on_cpus(_narrow.gathered, _narrow_adjoint, padding)
    again = jax.checkpoint(fast)  # keeps y for the gradient, not its copies
    return _narrow_adjoint(y, kernel, padding), fast(dy, kernel) + again(y, dkernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _tiled_convolved(x, kernel, padding):
    """`_convolved` with stride 1, for sizes that `_winograd` has a faster way for."""
    return _convolved(x, kernel, padding)


@_tiled_convolved.defjvp
def _tiled_convolved_jvp(padding, primals, tangents):
    return jax.jvp(_on_cpus(_winograd.convolved, _convolved, padding), primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _tiled_adjoint(y, kernel, padding):
    """`_adjoint`, for sizes that `_winograd` has a faster way for."""
    return _adjoint(y, kernel, padding)


@_tiled_adjoint.defjvp
def _tiled_adjoint_jvp(padding, primals, tangents):
    return jax.jvp(_on_cpus(_winograd.adjoint, _adjoint, padding), primals, tangents)


def _on_cpus(fast, plain, padding):
    return lambda x, kernel: lax.platform_dependent(
        x,
        kernel,
        cpu=lambda *args: fast(*args, padding),
        default=lambda *args: plain(*args, padding),
    )


def add_bias(x: Array, bias: Array) -> Array:
    """`x + bias` over the last axis."""
    return x + jnp.broadcast_to(bias, x.shape)
