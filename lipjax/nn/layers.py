"""The layers of `lipjax.layers` as Flax modules: parameters and a one-line call.

They act on batches, `float[..., features]` or `float[..., height, width, channels]`, and use no
state: call them under plain `jax.jit`, `jax.vmap` and `jax.grad`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _checks, _numerics
from lipjax.layers import _convolution, activations, aol, cpl, head, rescaled, sll
from lipjax.nn._bases import LinearConv, LinearDense, ResidualConv, ResidualDense
from lipjax.nn.constrained import Constrained, key_of
from lipjax.spectral.gram import GRADIENTS
from lipjax.spectral.rescaling import SIDES
from lipjax.typing import Bound


class SLLDense(ResidualDense):
    """SDP-based Lipschitz layer on `float[..., features]`; the width stays.

    Args:
        features: Width of input and output.
        hidden: Number of hidden units.
        activation: One with slopes in [0, 1], see `lipjax.layers.activations`.
        init: `"default"` or `"published"`, see `lipjax.layers.sll.init_dense`.
        rngs: Random number generators.

    Guarantee and reference: `lipjax.layers.sll`.

    >>> import jax.numpy as jnp
    >>> layer = SLLDense(4, 8, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 4))).shape, layer.bound().kind
    ((2, 4), 'upper')
    """

    module = sll

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation="relu",
        init: str = "default",
        rngs: nnx.Rngs,
    ):
        super().__init__(features, hidden, activation=activation, init=init, rngs=rngs)


class SLLConv(ResidualConv):
    """SDP-based Lipschitz layer on images `float[..., height, width, channels]`.

    Args:
        channels: Channels of input and output.
        hidden: Number of hidden channels.
        kernel_size: Window, one integer or two.
        activation: One with slopes in [0, 1].
        padding: `"zero"` or `"circular"`.
        init: `"default"` or `"published"`, see `lipjax.layers.sll.init_dense`.
        rngs: Random number generators.

    Guarantee and reference: `lipjax.layers.sll`.
    """

    module = sll

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        activation="relu",
        padding: str = "zero",
        init: str = "default",
        rngs: nnx.Rngs,
    ):
        options = dict(activation=activation, padding=padding, init=init, rngs=rngs)
        super().__init__(channels, hidden, kernel_size, **options)


class CPLDense(ResidualDense):
    """Convex potential layer on `float[..., features]`; the width stays.

    Args:
        features: Width of input and output.
        hidden: Number of hidden units.
        activation: One with slopes in [0, 1], see `lipjax.layers.activations`.
        init: `"default"` or `"published"`, see `lipjax.layers.cpl.init_dense`.
        gradient: Of the norm; `"norm"` is nearly free and has no second derivative, `"bound"` has.
        rngs: Random number generators.

    Guarantee and reference: `lipjax.layers.cpl`.
    """

    module = cpl

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation="relu",
        init: str = "default",
        gradient: str = "norm",
        rngs: nnx.Rngs,
    ):
        _checks.one_of(GRADIENTS, gradient=gradient)
        options = dict(activation=activation, init=init, gradient=gradient, rngs=rngs)
        super().__init__(features, hidden, **options)


class CPLConv(ResidualConv):
    """Convex potential layer on images `float[..., height, width, channels]`.

    Args:
        channels: Channels of input and output.
        hidden: Number of hidden channels.
        kernel_size: Window, one integer or two.
        activation: One with slopes in [0, 1].
        padding: `"zero"` or `"circular"`.
        init: `"default"` or `"published"`, see `lipjax.layers.cpl.init_dense`.
        gradient: Of the norm; `"norm"` is nearly free and has no second derivative, `"bound"` has.
        rngs: Random number generators.

    Guarantee and reference: `lipjax.layers.cpl`.
    """

    module = cpl

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        activation="relu",
        padding: str = "zero",
        init: str = "default",
        gradient: str = "norm",
        rngs: nnx.Rngs,
    ):
        _checks.one_of(GRADIENTS, gradient=gradient)
        options = dict(activation=activation, padding=padding, init=init, gradient=gradient)
        super().__init__(channels, hidden, kernel_size, rngs=rngs, **options)


class AOLDense(LinearDense):
    """Almost-orthogonal layer from `in_features` to `out_features`; see `lipjax.layers.aol`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        side: What is scaled, `"input"` (as published), `"output"`, or `"auto"`, the smaller.
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> AOLDense(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    module = aol

    def __init__(self, in_features: int, out_features: int, *, side: str = "auto", rngs: nnx.Rngs):
        _checks.one_of(SIDES, side=side)
        super().__init__(in_features, out_features, rngs=rngs)
        self.options = {"side": side}


class AOLConv(LinearConv):
    """Almost-orthogonal convolution; see `lipjax.layers.aol`.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Window, one integer or two.
        side: What is scaled, `"input"` (as published), `"output"`, or `"auto"`, the smaller.
        padding: `"zero"` or `"circular"`.
        strides: Step, one integer or two.
        rngs: Random number generators.
    """

    module = aol

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        side: str = "auto",
        padding: str = "zero",
        strides: int | tuple[int, int] = 1,
        rngs: nnx.Rngs,
    ):
        _checks.one_of(SIDES, side=side)
        super().__init__(
            in_features, out_features, kernel_size, padding=padding, strides=strides, rngs=rngs
        )
        self.options = {"side": side}


class RescaledDense(LinearDense):
    """Spectrally rescaled layer; see `lipjax.layers.rescaled`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_iters: 1 is the almost-orthogonal layer with weights; more come closer to norm 1.
        tighten: Whether the norm is made 1 in the end.
        side: What is scaled, `"input"`, `"output"`, or `"auto"`, the smaller.
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> RescaledDense(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    module = rescaled

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_iters: int = 3,
        tighten: bool = False,
        side: str = "auto",
        rngs: nnx.Rngs,
    ):
        _checks.integer(1, num_iters=num_iters)
        super().__init__(in_features, out_features, rngs=rngs, side=side)
        _checks.truth(tighten=tighten)
        self.options = {"num_iters": num_iters, "tighten": tighten, "side": side}


class RescaledConv(LinearConv):
    """Spectrally rescaled convolution; see `lipjax.layers.rescaled`.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Window, one integer or two.
        num_iters: As in `RescaledDense`; the cost grows quickly, 1 to 3 are practical.
        tighten: Whether the norm is made 1 in the end, for every input size.
        side: What is scaled, `"input"`, `"output"`, or `"auto"`, the smaller.
        padding: `"zero"` or `"circular"`.
        strides: Step, one integer or two.
        rngs: Random number generators.
    """

    module = rescaled

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        num_iters: int = 2,
        tighten: bool = False,
        side: str = "auto",
        padding: str = "zero",
        strides: int | tuple[int, int] = 1,
        rngs: nnx.Rngs,
    ):
        _checks.integer(1, num_iters=num_iters)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            padding=padding,
            strides=strides,
            rngs=rngs,
            side=side,
        )
        _checks.truth(tighten=tighten)
        self.options = {"num_iters": num_iters, "tighten": tighten, "side": side}


class NormalizedHead(LinearDense):
    """Last layer with class vectors of norm 1; see `lipjax.layers.head`.

    Its `bound` is that of the whole vector of logits. Certificates do better with the feature bound
    and `head=module.weights().kernel`.

    >>> import jax.numpy as jnp
    >>> NormalizedHead(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    module = head
    linear = None  # no contraction, so in no residual form

    def __init__(self, in_features: int, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, num_classes, rngs=rngs)


class MaxMin(nnx.Module, activations.ActivationModule):
    """`lipjax.layers.activations.max_min` as a module."""

    activation = activations.resolve("max_min")

    def __call__(self, x):
        return activations.max_min(x)


class GroupSort(nnx.Module, activations.ActivationModule):
    """`lipjax.layers.activations.group_sort` as a module."""

    def __init__(self, group_size: int = 2):
        self.activation = activations.group_sort_of(group_size)
        self.group_size = group_size

    def __call__(self, x):
        return activations.group_sort(x, group_size=self.group_size)


class FullSort(nnx.Module, activations.ActivationModule):
    """`lipjax.layers.activations.full_sort` as a module."""

    activation = activations.resolve("full_sort")

    def __call__(self, x):
        return activations.full_sort(x)


class Householder(Constrained):
    """Householder activation with learnt angles; see `lipjax.layers.activations`.

    Args:
        channels: Size of the last axis.
        order: 1, one angle a pair of channels, from `pi / 2`; or 2, three angles, uniform in
            [0, pi]. Both as published.
        rngs: Random number generators.

    Guarantee: 1-Lipschitz for any angles, up to the rounding of the evaluation.

    >>> import jax.numpy as jnp
    >>> Householder(4, rngs=nnx.Rngs(0))(jnp.array([5.0, 1.0, 3.0, 2.0])).round(4).tolist()
    [3.0, 1.0, 5.0, 2.0]
    """

    def __init__(self, channels: int, *, order: int = 1, rngs: nnx.Rngs):
        _checks.integer(2, channels=channels)
        _checks.one_of((1, 2), order=order)
        if order == 1:
            angles = jnp.full(channels // 2, jnp.pi / 2)
        else:
            angles = jax.random.uniform(key_of(rngs), (3, channels // 2), maxval=jnp.pi)
        super().__init__(angles)

    def constrain(self, params):
        return params

    def apply(self, weights, x):
        _convolution.check_dtype(weights, x)
        order_1 = weights.ndim == 1
        return (activations.householder if order_1 else activations.householder_order_2)(x, weights)

    def freeze_params(self, params):
        return params

    def bound_weights(self, weights) -> Bound:
        finite = bool(np.isfinite(_numerics.on_host_float64(lambda a: a, weights)).all())
        return Bound(1.0 if finite else float("inf"), "upper")
