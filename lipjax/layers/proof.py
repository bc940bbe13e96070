"""The figures of a layer's proof, measured for given weights; a layer that is wrong is refused.

Three things that can go wrong are measured one by one, in float64 on the host: the SDP condition may
not hold for the weights, the code may not compute the layer that the condition is about, and the
backward map of a residual layer may not be the adjoint of its forward map.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import _checks
from lipjax._numerics import on_host_float64
from lipjax.layers import activations, lmi
from lipjax.layers.forms import Residual
from lipjax.spectral.rescaling import autocorrelation
from lipjax.typing import Array


class Proof(NamedTuple):
    """What `prove` found.

    Attributes:
        smallest_eigenvalue: Of the matrix of the SDP condition; at least 0 in exact arithmetic, and 0
            for every residual layer, along x itself. It falls below where a layer has used up its slack.
        jacobian_norm: The largest norm of the Jacobian that was found by maximization; at most 1.
        mismatch: The largest difference between the layer as computed and as its matrices say, over
            the size of the output.
        adjoint_error: `|<M x, y> - <x, M y>| / (|M x| |y|)` of what a residual layer, or that of a
            mix, without its activation subtracts from x, which is symmetric if it multiplies back with
            the adjoint; 0 for other layers.
    """

    smallest_eigenvalue: float
    jacobian_norm: float
    mismatch: float
    adjoint_error: float


def prove(
    key: Array,
    apply: Callable,
    weights=None,
    shape: tuple[int, ...] = (),
    *,
    activation=None,
    padding: str = "zero",
    strides: int | tuple[int, ...] = 1,
    order: int | None = None,
    num_points: int = 8,
    num_steps: int = 20,
    tol: float = 1e-5,
) -> Proof:
    """The figures of the proof, or an error if one of them is off.

    Args:
        key: For the points at which the layer is tried.
        apply: `(weights, x) -> y` of a layer of `lipjax.layers`, such as `sll.apply_conv`; or a layer of
            `lipjax.nn`, without weights and the options that it knows: `prove(key, layer, shape=(4,))`.
        weights: What its `constrain` or `freeze` made.
        shape: Of one example: `(features,)`, or `(*spatial, channels)`. Small: the layer is written
            out as a matrix, and its Jacobian too.
        activation: Passed to `apply` if it is not None; ReLU is what the matrices assume otherwise.
        padding: Of a convolution, passed to `apply` if it is not `"zero"`.
        strides: Of a linear convolution, passed to `apply` if it is not 1.
        order: Of a skew convolution, passed to `apply` if it is not None.
        num_points: Random points from which the Jacobian's norm is maximized.
        num_steps: Steps of gradient ascent.
        tol: How far each figure may be off; float32 weights of orthogonal layers miss the condition
            by their rounding, about 1e-6.

    Raises:
        ValueError: where a figure is off by more than `tol`; the message has all of them. For a shape
            that the layer is not for, for weights that no layer makes, or class vectors
            (`lipjax.layers.head`), which are no contraction. For a module that is made of several
            layers, as Chain and Stack: prove those.

    >>> import jax
    >>> from lipjax.layers import sll
    >>> weights = sll.constrain_dense(sll.init_dense(jax.random.key(0), 4, 3))
    >>> proof = prove(jax.random.key(1), sll.apply_dense, weights, (4,))
    >>> proof.smallest_eigenvalue > -1e-6, proof.jacobian_norm <= 1 + 1e-6
    (True, True)
    """
    _checks.one_key(key=key)
    _checks.integer(1, num_points=num_points)
    _checks.integer(0, num_steps=num_steps)
    _checks.nonnegative(tol=tol)
    if not isinstance(shape, tuple) or not shape:
        raise ValueError(f"shape is {shape!r}; it must be that of one example, a tuple.")
    _checks.per_axis(len(shape), shape=shape)
    given = dict(padding=(padding, "zero"), strides=(strides, 1), order=(order, None))
    given["activation"] = (activation, None)
    options = {name: value for name, (value, usual) in given.items() if value != usual}
    static = {name: value for name, value in options.items() if name != "activation"}
    used = options.get("activation", "relu")
    if weights is None:
        apply, weights, matrices, unmixed, used = _of_module(apply, shape, options)
    elif not isinstance(weights, lmi.KINDS):
        raise lmi.unknown(weights)
    else:

        def matrices(weights):
            if weights.kernel.ndim == 2:
                return lmi.of_dense(weights)
            return lmi.of_conv(weights, shape[:-1], **static)

        def unmixed(weights):
            return weights, 1.0

    seeds = [int(s) for s in np.asarray(jax.random.bits(key, (3,)))]
    points = [np.random.default_rng(s).normal(size=(num_points, *shape)) for s in seeds]

    def layer(weights, x, **more):
        return apply(weights, x, **(options | more))

    double = jax.tree.map(_doubled, weights)
    eigenvalue, mismatch = on_host_float64(
        lambda w, x: _against_matrices(layer, w, x, matrices(w), used, *unmixed(w)),
        double,
        points[0],
    )
    norm = on_host_float64(lambda w, x: _steepest(layer, w, x, num_steps), double, points[1])
    adjoint = 0.0
    if isinstance(unmixed(weights)[0], Residual):
        adjoint = on_host_float64(
            lambda w, x, y: _asymmetry(layer, unmixed(w)[0], x, y), double, *points[1:]
        )
    proof = Proof(*(float(v) for v in (eigenvalue, norm, mismatch, adjoint)))
    sound = (
        proof.smallest_eigenvalue >= -tol
        and proof.jacobian_norm <= 1 + tol
        and proof.mismatch <= tol
        and proof.adjoint_error <= tol
    )
    if not sound:
        raise ValueError(
            f"weights do not make a 1-Lipschitz layer within tol {tol}: smallest eigenvalue of the "
            f"condition {proof.smallest_eigenvalue:.3g}, Jacobian norm {proof.jacobian_norm:.7f}, "
            f"mismatch with its matrices {proof.mismatch:.3g}, adjoint error "
            f"{proof.adjoint_error:.3g}."
        )
    return proof


def orthogonality(kernel: Array) -> Array:
    """`1 / (1 + rho_i)` with `rho_i = sum_{j != i} |G_ij| / G_ii`: 1 for orthogonal columns.

    For a convolution the sum goes over all lags of the Gram operator but the diagonal at lag 0.

    For the almost-orthogonal layer its mean over the columns is the mean squared singular value of
    the rescaled kernel: what the layer keeps of a signal. A loss that needs a margin therefore pushes
    it towards 1, which is the bias of that layer towards orthogonality; `lipjax.nn.orthogonality` is
    that mean for a network.

    Args:
        kernel: `float[n, m]` or `float[*window, n, m]`, before it is rescaled, with at least as many
            rows as columns; otherwise its rows are meant.

    Returns:
        `float[min(n, m)]` in [0, 1]; 0 for a column of zeros, NaN for a NaN.

    >>> import jax.numpy as jnp
    >>> [round(float(v), 3) for v in orthogonality(jnp.array([[1.0, 1.0], [0.0, 3.0]]))]
    [0.5, 0.909]
    """
    _checks.ranked((2, 3, 4, 5), "[n, m] or [*window, n, m]", kernel=kernel)
    _checks.real_floating(kernel=kernel)
    if kernel.shape[-2] < kernel.shape[-1]:
        kernel = jnp.swapaxes(kernel, -1, -2)
    size = jnp.max(jnp.abs(kernel))
    kernel = kernel / jnp.where(size > 0, size, 1)
    if kernel.ndim == 2:
        kernel = kernel[None]
    gram = jnp.abs(autocorrelation(kernel)).reshape(-1, *2 * kernel.shape[-1:])
    own, total = jnp.diagonal(gram[len(gram) // 2]), gram.sum((0, 2))
    return jnp.where(total == 0, 0, own / jnp.where(total == 0, 1, total))


def _of_module(module, shape, options):
    """Function, weights, matrices, what is mixed with the input, and activation of a module."""
    if not hasattr(module, "bound_weights"):
        raise ValueError(
            f"weights is None and apply a {type(module).__name__}; without weights it must be a layer "
            "of lipjax.nn."
        )
    if options:
        raise ValueError(
            f"{min(options)} is given for a {type(module).__name__}, which has its own."
        )
    weights = module.weights()
    inner = module.unmixed(weights)[0]
    plain = copy.copy(inner)
    plain.activation = "identity"

    def apply(weights, x, activation=None):
        """The module, or the layer inside of it without its activation."""
        return (module if activation is None else plain).apply(weights, x)

    def matrices(weights):
        return module.matrices(weights, shape)

    def unmixed(weights):
        return module.unmixed(weights)[1:]

    return apply, weights, matrices, unmixed, getattr(inner, "activation", "relu")


def _against_matrices(layer, weights, points, matrices, activation, inner_weights, share):
    """Smallest eigenvalue of the condition, and how far the layer is from what it is about.

    `inner_weights` are those of the layer itself, or of the one that is mixed with its input by that
    share.
    """
    eigenvalue = jnp.linalg.eigvalsh(lmi.residual(*matrices)).min()
    s = activations.slope_restricted(activation)
    skip, outer, inner, _ = matrices
    if skip.shape[1] != points[0].size:
        raise ValueError(
            f"shape is {points[0].shape}, of {points[0].size} entries; the layer is for {skip.shape[1]}."
        )
    linear = inner.shape[1] == 0  # the bias is then that of the output
    inside = _tiled(inner_weights.bias, inner.shape[1])
    outside = share * _tiled(inner_weights.bias, len(skip) if linear else 0)
    worst = 0.0
    for x in points:
        flat = x.reshape(-1)
        expected = skip @ flat + outer @ s(inner.T @ flat + inside)
        expected = expected + outside if linear else expected
        got = layer(weights, x).reshape(-1)
        scale = jnp.maximum(jnp.linalg.norm(expected), jnp.linalg.norm(flat))
        worst = jnp.maximum(worst, jnp.linalg.norm(got - expected) / scale)
    return eigenvalue, worst


def _tiled(bias, size):
    return jnp.tile(bias, size // bias.shape[0])


def _steepest(layer, weights, points, num_steps):
    """The largest norm of the Jacobian along gradient ascent from each point."""
    size = points[0].size

    def norm(x):
        jacobian = jax.jacobian(lambda x: layer(weights, x))(x)
        return jnp.linalg.norm(jacobian.reshape(-1, size), ord=2)

    def step(x, _):
        value, slope = jax.value_and_grad(norm)(x)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        length = jnp.linalg.norm(slope)
        return x + 0.3 * slope / jnp.where(length > 0, length, 1), value

    def climb(x):
        x, values = jax.lax.scan(step, x, length=num_steps)
        return jnp.maximum(jnp.max(values, initial=0), norm(x))

    scales = 10.0 ** jnp.linspace(-1, 1, len(points))
    scaled = points * scales.reshape(-1, *(1,) * (points.ndim - 1))
    return jnp.max(jax.jit(jax.vmap(climb))(scaled))


def _asymmetry(layer, weights, xs, ys):
    weights = weights._replace(bias=jnp.zeros_like(weights.bias))

    def subtracted(x):
        return (x - layer(weights, x, activation="identity")).reshape(-1)

    worst = 0.0
    for x, y in zip(xs, ys):
        forth, back = subtracted(x), subtracted(y)
        gap = jnp.abs(forth @ y.reshape(-1) - x.reshape(-1) @ back)
        size = jnp.linalg.norm(forth) * jnp.linalg.norm(y)
        worst = jnp.maximum(worst, gap / jnp.where(size > 0, size, 1))
    return worst


def _doubled(array):
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
