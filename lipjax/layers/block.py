r"""Block-orthogonal convolutions: small kernels that are exactly orthogonal, at any image size.

A product of factors $P + (I - P)\, z$ with projections P is unitary for every $|z| = 1$. A kernel of
$k \times k$ taps is the product of an orthogonal matrix and of $k - 1$ such factors for each axis; with
circular padding it is orthogonal, with zero padding a contraction, and it is a plain kernel: nothing is
lost at inference. With a stride s the orthogonal matrix becomes a kernel of $s \times s$ taps that sees
each pixel once. If the projections are off, with eigenvalues anywhere in [0, 1], the product is a
contraction still.

Reference: Li et al. (2019), https://arxiv.org/abs/1911.00937; with strides Boissin et al. (2025),
https://arxiv.org/abs/2501.07930.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax._numerics import einsum, matmul, on_host_float64
from lipjax.layers import _parameters, bjorck, forms
from lipjax.layers._convolution import add_bias, convolve
from lipjax.layers.forms import Linear
from lipjax.typing import Array, Bound


class Params(NamedTuple):
    """Free parameters; any values are valid.

    Attributes:
        kernel: `float[s, s, n, m]`, the taps of the strided part; s is 1 without a stride.
        factors: `float[2, k - s, n, n // 2]`, for rows and columns: the ranges of the projections.
        bias: `float[m]`.
    """

    kernel: Array
    factors: Array
    bias: Array


def init_conv(
    key: Array, in_features: int, out_features: int, *, kernel_size=3, strides=1
) -> Params:
    """Random orthogonal matrices and projections on half of the channels, for images.

    Args:
        key: Random key.
        in_features: Channels of the input, at least 2 unless `kernel_size` equals `strides`.
        out_features: Channels of the output.
        kernel_size: Taps per axis, at least `strides`; one integer or two equal ones.
        strides: Step per axis, one integer or two equal ones.

    Returns:
        `kernel: float[s, s, n, m]`, `factors: float[2, k - s, n, n // 2]`, `bias: float[m]`.

    Raises:
        ValueError: for sizes that are none, windows or steps that are not square, a window shorter than
            the step, or a single channel.

    >>> import jax
    >>> init_conv(jax.random.key(0), 4, 4).factors.shape
    (2, 2, 4, 2)
    """
    _checks.integer(1, in_features=in_features, out_features=out_features)
    stride = _square(strides=strides)
    kernel_size = _square(kernel_size=kernel_size)
    _checks.integer(stride, kernel_size=kernel_size)
    _checks.one_key(key=key)
    if in_features < 2 and kernel_size > stride:
        raise ValueError(f"in_features is {in_features}; projections need at least 2 channels.")
    kernel_key, factor_key = jax.random.split(key)
    shape = (stride * stride * in_features, out_features)
    kernel = jax.nn.initializers.orthogonal()(kernel_key, shape)
    half = in_features // 2
    factors = jax.random.normal(factor_key, (2, kernel_size - stride, in_features, half))
    kernel = kernel.reshape(stride, stride, in_features, out_features)
    return Params(kernel, factors, jnp.zeros(out_features))


class Strided(NamedTuple):
    """Weights of a convolution with a stride, without which it would expand.

    Attributes:
        kernel: `float[k, k, n, m]`.
        bias: `float[m]`.
        steps: `float[s, s, 0]`, empty: its shape says the stride.
    """

    kernel: Array
    bias: Array
    steps: Array


def constrain_conv(
    params: Params, *, num_steps: int = 20, adaptive: bool = True
) -> Linear | Strided:
    """The weights of the layer, a plain kernel of `k x k` taps, with the stride if there is one.

    Guarantee: norm at most 1 up to rounding, about 1e-6, for zero padding and every size, and for
    circular padding of sizes that the stride divides; `bound` proves what these floats have. A zero
    kernel stays zero. Finite gradients everywhere. NaN in gives NaN out. `num_steps` and `adaptive` as
    in `lipjax.layers.bjorck`: second derivatives take `adaptive=False`.

    >>> import jax
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 4, 4))
    >>> weights.kernel.shape
    (3, 3, 4, 4)
    """
    params = _parameters.of_conv(Params, params, 4)
    stride, other, rows, cols = params.kernel.shape
    if stride != other:
        raise ValueError(
            f"params.kernel has shape {params.kernel.shape}; its first two axes are the stride and must "
            "be equal."
        )
    shape = params.factors.shape
    if params.factors.size and (len(shape) != 4 or shape[0] != 2 or shape[2] != rows):
        raise ValueError(
            f"params.factors has shape {shape}; it must be [2, steps, {rows}, {rows // 2}]."
        )
    flat = bjorck.Params(params.kernel.reshape(-1, cols), params.bias)
    orthogonal = functools.partial(bjorck.constrain_dense, num_steps=num_steps, adaptive=adaptive)
    last = orthogonal(flat).kernel
    last = last.reshape(params.kernel.shape)
    if not params.factors.size:
        return _weights(last, params.bias, stride)
    # The empty products of the projections with a window of 1 x 1: the identity.
    total = jnp.eye(rows, dtype=last.dtype)[None, None]
    for axis, factors in enumerate(params.factors):
        for factor in factors:
            basis = orthogonal(bjorck.Params(factor, jnp.zeros(factor.shape[1], factor.dtype)))
            projection = matmul(basis.kernel, basis.kernel.T)
            rest = jnp.eye(rows, dtype=last.dtype) - projection
            near = einsum("ijnm,mk->ijnk", total, projection)
            far = einsum("ijnm,mk->ijnk", total, rest)
            total = _shifted(near, axis, 0) + _shifted(far, axis, 1)
    spread = sum(
        _placed(einsum("ijnm,mk->ijnk", total, last[a, b]), a, b, stride)
        for a in range(stride)
        for b in range(stride)
    )
    return _weights(spread, params.bias, stride)


def linear_conv(weights: Linear | Strided, x: Array, *, padding: str = "zero") -> Array:
    """The convolution of `float[..., height, width, n]`, without its bias; linear in x.

    >>> import jax, jax.numpy as jnp
    >>> weights = constrain_conv(init_conv(jax.random.key(0), 2, 2, kernel_size=1))
    >>> linear_conv(weights, jnp.ones((6, 6, 2))).shape
    (6, 6, 2)
    """
    stride, x = stride_of(weights), _checks.array(x=x)
    if padding == "circular" and any(n % stride for n in x.shape[-3:-1]):
        raise ValueError(
            f"x has shape {x.shape}; with circular padding its height and width must be multiples of "
            f"the stride {stride}, or pixels at the edge are seen twice."
        )
    return convolve(x, weights.kernel, padding=padding, strides=stride)


def apply_conv(weights: Linear | Strided, x: Array, *, padding: str = "zero") -> Array:
    """The layer on `float[..., height, width, n]`, with the stride that the parameters have.

    Guarantee: 1-Lipschitz up to the rounding of the evaluation.
    """
    return add_bias(linear_conv(weights, x, padding=padding), weights.bias)


def freeze_conv(params: Params, *, num_steps: int = 25) -> Linear | Strided:
    """`constrain_conv` in float64 on the host, rounded: for evaluation."""
    return forms.frozen(functools.partial(constrain_conv, num_steps=num_steps), params)


def bound(weights: Linear | Strided) -> Bound:
    """Upper bound on the Lipschitz constant with these weights, proved in float64 on the host.

    Guarantee: at least the constant of the layer with exactly these floats, for zero padding and every
    size, and circular padding of sizes that the stride divides. NaN or infinite weights give infinity.

    With a stride the kernel is that of the pixels of each block as channels. Up to 1.01 where the norm
    is 1 for kernels that are far from orthogonal.
    """
    by_blocks = functools.partial(_by_blocks, stride=stride_of(weights))
    kernel = on_host_float64(by_blocks, weights.kernel)
    return forms.linear_bound(forms.linear(kernel, weights.bias))


def stride_of(weights: Linear | Strided) -> int:
    """The step per axis.

    Raises:
        ValueError: for what is neither.

    >>> import jax
    >>> stride_of(constrain_conv(init_conv(jax.random.key(0), 2, 4, strides=2)))
    2
    """
    if isinstance(weights, Strided):
        return weights.steps.shape[0]
    forms.check_made(weights, Linear)
    return 1


def _square(**named) -> int:
    """One integer, from one or two equal ones."""
    ((name, value),) = named.items()
    rows, cols = _checks.per_axis(2, **named)
    if rows != cols:
        raise ValueError(
            f"{name} is {value}; a block-orthogonal convolution has the same on both axes."
        )
    return rows


def _weights(kernel, bias, stride):
    if stride == 1:
        return forms.linear(kernel, bias)
    return Strided(kernel, bias, jnp.zeros((stride, stride, 0), kernel.dtype))


def _shifted(kernel, axis, place):
    """The kernel in a window that is one tap longer along the axis."""
    pads = [(0, 0)] * 4
    pads[axis] = (place, 1 - place)
    return jnp.pad(kernel, pads)


def _placed(kernel, a, b, stride):
    """The kernel in a window longer by `stride - 1`, from tap (a, b) on."""
    return jnp.pad(kernel, [(a, stride - 1 - a), (b, stride - 1 - b), (0, 0), (0, 0)])


def _by_blocks(kernel, stride):
    """The kernel of the same map between images whose blocks of pixels are channels."""
    rows, cols, n, m = kernel.shape
    high, wide = math.ceil(rows / stride), math.ceil(cols / stride)
    kernel = jnp.pad(kernel, [(0, high * stride - rows), (0, wide * stride - cols), (0, 0), (0, 0)])
    kernel = kernel.reshape(high, stride, wide, stride, n, m).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(high, wide, stride * stride * n, m)
