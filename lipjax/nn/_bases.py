"""What modules of one form share: each delegates to its `module` of `lipjax.layers`."""

from flax import nnx

from lipjax import _checks
from lipjax.layers import _convolution, activations, aol, forms, sll
from lipjax.nn.constrained import Constrained, key_of
from lipjax.typing import Bound


class ResidualDense(Constrained):
    """`x - 2 s(x W + b) T^-1 W^T`; `module` is the named layer it delegates to."""

    module = sll

    def __init__(self, features, hidden, *, activation, init, rngs, **options):
        activations.slope_restricted(activation)
        super().__init__(self.module.init_dense(key_of(rngs), features, hidden, init=init))
        self.activation = activation
        self.options = options

    def constrain(self, params):
        return self.module.constrain_dense(params, **self.options)

    def apply(self, weights, x):
        return self.module.apply_dense(weights, x, activation=self.activation)

    def freeze_params(self, params):
        return self.module.freeze_dense(params)

    def bound_weights(self, weights) -> Bound:
        return self.module.bound(weights)


class ResidualConv(Constrained):
    """As `ResidualDense` with a padded convolution and its exact adjoint."""

    module = sll

    def __init__(
        self, channels, hidden, kernel_size, *, activation, padding, init, rngs, **options
    ):
        activations.slope_restricted(activation)
        _convolution.check_padding(padding)
        initial = dict(kernel_size=kernel_size, init=init)
        super().__init__(self.module.init_conv(key_of(rngs), channels, hidden, **initial))
        self.activation = activation
        self.padding = padding
        self.options = options

    def constrain(self, params):
        return self.module.constrain_conv(params, **self.options)

    def apply(self, weights, x):
        return self.module.apply_conv(weights, x, activation=self.activation, padding=self.padding)

    def freeze_params(self, params):
        return self.module.freeze_conv(params)

    def bound_weights(self, weights) -> Bound:
        return self.module.bound(weights)


class LinearDense(Constrained):
    """`x A + b`; `module` is the named layer it delegates to, `options` those of its constraint."""

    module = aol

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, **initial):
        params = self.module.init_dense(key_of(rngs), in_features, out_features, **initial)
        super().__init__(params)
        self.options = {}

    def linear(self, weights, x):
        """The layer without its bias."""
        return forms.product_dense(weights, x)

    def constrain(self, params):
        return self.module.constrain_dense(params, **self.options)

    def apply(self, weights, x):
        return self.module.apply_dense(weights, x)

    def freeze_params(self, params):
        return self.module.freeze_dense(params, **self.options)

    def bound_weights(self, weights) -> Bound:
        return self.module.bound(weights)


class LinearConv(Constrained):
    """As `LinearDense` with a padded, strided convolution."""

    module = aol

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        padding: str = "zero",
        strides: int | tuple[int, int] = 1,
        rngs: nnx.Rngs,
        **initial,
    ):
        _convolution.check_padding(padding)
        _checks.per_axis(2, strides=strides)
        params = self.module.init_conv(
            key_of(rngs), in_features, out_features, kernel_size=kernel_size, **initial
        )
        super().__init__(params)
        self.options = {}
        self.padding = padding
        self.strides = strides if isinstance(strides, int) else _checks.per_axis(2, strides=strides)

    def linear(self, weights, x):
        """The layer without its bias."""
        return forms.product_conv(weights, x, padding=self.padding, strides=self.strides)

    def constrain(self, params):
        return self.module.constrain_conv(params, **self.options)

    def apply(self, weights, x):
        return self.module.apply_conv(weights, x, padding=self.padding, strides=self.strides)

    def freeze_params(self, params):
        return self.module.freeze_conv(params, **self.options)

    def bound_weights(self, weights) -> Bound:
        return self.module.bound(weights)
