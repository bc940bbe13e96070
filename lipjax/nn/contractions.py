"""The contractions of `lipjax.layers` as Flax modules."""

from collections.abc import Callable

from flax import nnx

from lipjax import _checks
from lipjax.layers import (
    _convolution,
    activations,
    bjorck,
    block,
    cayley,
    householder,
    normalized,
    reflector,
    sandwich,
    skew,
    triangular,
)
from lipjax.nn._bases import LinearConv, LinearDense
from lipjax.nn.constrained import Constrained, key_of
from lipjax.spectral.gram import GRADIENTS
from lipjax.typing import Array, Bound


class SpectralDense(LinearDense):
    """Kernel over an upper bound on its spectral norm; see `lipjax.layers.normalized`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        norm: `kernel -> float[]` to divide by in training, by default `gram_iteration`. With an estimate
            from below, such as power iteration, training is not 1-Lipschitz; what `freeze` returns is.
        num_iters: Gram products of the default.
        gradient: Of the default; `"norm"` is nearly free and has no second derivative, `"bound"` has.
        rngs: Random number generators.
    """

    module = normalized

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        norm: Callable[[Array], Array] | None = None,
        num_iters: int = 6,
        gradient: str = "norm",
        rngs: nnx.Rngs,
    ):
        _checks.integer(1, num_iters=num_iters)
        _checks.one_of(GRADIENTS, gradient=gradient)
        super().__init__(in_features, out_features, rngs=rngs)
        self.options = {"norm": norm, "num_iters": num_iters, "gradient": gradient}

    def freeze_params(self, params):
        return normalized.freeze_dense(params)


class SpectralConv(LinearConv):
    """Kernel over an upper bound on the norm of its convolution; see `lipjax.layers.normalized`.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Window, one integer or two.
        norm: As in `SpectralDense`; the default holds for both paddings and every size. So do `freeze`
            and `bound`, whatever is given here: one for a single padding and size, which may be smaller,
            makes a layer that is 1-Lipschitz there and whose `bound` may be above 1.
        num_iters: Gram products of the default.
        gradient: Of the default; `"norm"` is nearly free and has no second derivative, `"bound"` has.
        padding: `"zero"` or `"circular"`.
        strides: Step, one integer or two.
        rngs: Random number generators.
    """

    module = normalized

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        norm: Callable[[Array], Array] | None = None,
        num_iters: int = 4,
        gradient: str = "norm",
        padding: str = "zero",
        strides: int | tuple[int, int] = 1,
        rngs: nnx.Rngs,
    ):
        _checks.integer(1, num_iters=num_iters)
        _checks.one_of(GRADIENTS, gradient=gradient)
        super().__init__(
            in_features, out_features, kernel_size, padding=padding, strides=strides, rngs=rngs
        )
        self.options = {"norm": norm, "num_iters": num_iters, "gradient": gradient}

    def freeze_params(self, params):
        return normalized.freeze_conv(params)


class BjorckDense(LinearDense):
    """Orthonormal columns or rows by Björck's iteration; see `lipjax.layers.bjorck`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_steps: Steps of the iteration; any number is a contraction.
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> BjorckDense(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    module = bjorck

    def __init__(self, in_features: int, out_features: int, *, num_steps: int = 15, rngs: nnx.Rngs):
        _checks.integer(0, num_steps=num_steps)
        super().__init__(in_features, out_features, rngs=rngs)
        self.options = {"num_steps": num_steps}


class CayleyDense(LinearDense):
    """Orthonormal columns or rows by the Cayley transform; see `lipjax.layers.cayley`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> CayleyDense(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    module = cayley

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, rngs=rngs)


class HouseholderDense(LinearDense):
    """A product of reflections; see `lipjax.layers.householder`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_reflections: How many; by default as many as the larger width.
        rngs: Random number generators.
    """

    module = householder

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        num_reflections: int | None = None,
        rngs: nnx.Rngs,
    ):
        params = householder.init_dense(
            key_of(rngs), in_features, out_features, num_reflections=num_reflections
        )
        Constrained.__init__(self, params)
        self.options = {}


class QRDense(LinearDense):
    """Orthonormal columns or rows by a QR factorization; see `lipjax.layers.triangular`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rngs: Random number generators.
    """

    module = triangular

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, rngs=rngs)


class CholeskyDense(LinearDense):
    """Nearly orthonormal columns or rows by a Cholesky factorization, as LiResNet has them.

    See `lipjax.layers.triangular`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        rngs: Random number generators.
    """

    module = triangular

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, rngs=rngs)
        self.options = {"method": "cholesky"}


class SkewDense(LinearDense):
    """The exponential of a skew matrix; see `lipjax.layers.skew`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        gradient: Of the norm; `"norm"` is nearly free and has no second derivative, `"bound"` has.
        rngs: Random number generators.
    """

    module = skew

    def __init__(
        self, in_features: int, out_features: int, *, gradient: str = "norm", rngs: nnx.Rngs
    ):
        _checks.one_of(GRADIENTS, gradient=gradient)
        super().__init__(in_features, out_features, rngs=rngs)
        self.options = {"gradient": gradient}

    def freeze_params(self, params):
        return skew.freeze_dense(params)


class ReflectorDense(LinearDense):
    """Reflection of a subspace, the BRO layer; see `lipjax.layers.reflector`. The width stays.

    Args:
        features: Width of input and output.
        rank: Dimension of the reflected subspace; half of the width by default.
        depth: Number of such layers in the network, for the initialization.
        rngs: Random number generators.
    """

    module = reflector

    def __init__(self, features: int, *, rank: int | None = None, depth: int = 1, rngs: nnx.Rngs):
        params = reflector.init_dense(key_of(rngs), features, rank=rank, depth=depth)
        Constrained.__init__(self, params)
        self.options = {}


class BCOPConv(Constrained):
    """Block-orthogonal convolution, with a stride if asked; see `lipjax.layers.block`.

    Args:
        in_features: Channels of the input, at least 2.
        out_features: Channels of the output.
        kernel_size: Taps per axis, at least `strides`; one integer or two equal ones.
        strides: Step per axis, one integer or two equal ones.
        padding: `"zero"` or `"circular"`.
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> BCOPConv(2, 3, rngs=nnx.Rngs(0))(jnp.ones((1, 4, 4, 2))).shape
    (1, 4, 4, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        strides: int | tuple[int, int] = 1,
        padding: str = "zero",
        rngs: nnx.Rngs,
    ):
        _convolution.check_padding(padding)
        options = {"kernel_size": kernel_size, "strides": strides}
        super().__init__(block.init_conv(key_of(rngs), in_features, out_features, **options))
        self.padding = padding

    def constrain(self, params):
        return block.constrain_conv(params)

    def apply(self, weights, x):
        return block.apply_conv(weights, x, padding=self.padding)

    def linear(self, weights, x):
        return block.linear_conv(weights, x, padding=self.padding)

    def freeze_params(self, params):
        return block.freeze_conv(params)

    def bound_weights(self, weights) -> Bound:
        return block.bound(weights)


class SOCConv(Constrained):
    """Skew orthogonal convolution, a Taylor sum of the exponential; see `lipjax.layers.skew`.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Window, odd, one integer or two.
        order: Terms of the series after the first: 3, 4, 7, 8, 11 or 12, which are contractions.
        padding: `"zero"` or `"circular"`.
        gradient: Of the norm; `"norm"` is nearly free and has no second derivative, `"bound"` has.
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> SOCConv(2, 3, rngs=nnx.Rngs(0))(jnp.ones((1, 4, 4, 2))).shape
    (1, 4, 4, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        order: int = skew.ORDER,
        padding: str = "zero",
        gradient: str = "norm",
        rngs: nnx.Rngs,
    ):
        _checks.one_of((3, 4, 7, 8, 11, 12), order=order)
        _checks.one_of(GRADIENTS, gradient=gradient)
        _convolution.check_padding(padding)
        super().__init__(
            skew.init_conv(key_of(rngs), in_features, out_features, kernel_size=kernel_size)
        )
        self.order = order
        self.padding = padding
        self.gradient = gradient

    def constrain(self, params):
        return skew.constrain_conv(params, gradient=self.gradient)

    def apply(self, weights, x):
        return skew.apply_conv(weights, x, order=self.order, padding=self.padding)

    def linear(self, weights, x):
        return skew.linear_conv(weights, x, order=self.order, padding=self.padding)

    def freeze_params(self, params):
        return skew.freeze_conv(params)

    def bound_weights(self, weights) -> Bound:
        return skew.bound(weights, order=self.order)


class SandwichDense(Constrained):
    """`sqrt(2) A^T Psi s(sqrt(2) Psi^-1 B x + b)`; see `lipjax.layers.sandwich`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        activation: One with slopes in [0, 1].
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> SandwichDense(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    def __init__(self, in_features: int, out_features: int, *, activation="relu", rngs: nnx.Rngs):
        activations.slope_restricted(activation)
        super().__init__(sandwich.init_dense(key_of(rngs), in_features, out_features))
        self.activation = activation

    def constrain(self, params):
        return sandwich.constrain_dense(params)

    def apply(self, weights, x):
        return sandwich.apply_dense(weights, x, activation=self.activation)

    def freeze_params(self, params):
        return sandwich.freeze_dense(params)

    def bound_weights(self, weights) -> Bound:
        return sandwich.bound(weights)
