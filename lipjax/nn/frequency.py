"""Convolutions made at each frequency of images of one size, as Flax modules."""

import numpy as np
from flax import nnx

from lipjax import _checks
from lipjax.layers import activations, cayley, reflector, sandwich
from lipjax.nn.constrained import Constrained, key_of
from lipjax.typing import Bound


class _FrequencyConv(Constrained):
    """A circular convolution made at each frequency of images of one size."""

    module = cayley

    def __init__(self, params, input_size):
        self.input_size = _checks.per_axis(2, input_size=input_size)
        super().__init__(params)

    def constrain(self, params):
        return self.module.constrain_conv(params, input_size=self.input_size)

    def apply(self, weights, x):
        self._check_size(x)
        return self.module.apply_conv(weights, x)

    def linear(self, weights, x):
        self._check_size(x)
        return self.module.linear_conv(weights, x)

    def _check_size(self, x):
        """The weights alone do not say whether the last frequency of a width stands for two columns."""
        shape = np.shape(x)
        if len(shape) >= 3 and shape[-3:-1] != self.input_size:
            raise ValueError(
                f"x has shape {shape}; the layer is for images of input_size={self.input_size}, "
                "[..., height, width, channels]."
            )

    def freeze_params(self, params):
        return self.module.freeze_conv(params, input_size=self.input_size)

    def bound_weights(self, weights) -> Bound:
        return self.module.bound(weights)


class CayleyConv(_FrequencyConv):
    """Orthogonal circular convolution by the Cayley transform; see `lipjax.layers.cayley`.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Window of the parameters; the layer's own filter is as large as the image.
        input_size: Size of the images, one integer or (height, width).
        rngs: Random number generators.

    >>> import jax.numpy as jnp
    >>> CayleyConv(2, 3, input_size=4, rngs=nnx.Rngs(0))(jnp.ones((1, 4, 4, 2))).shape
    (1, 4, 4, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        input_size: int | tuple[int, int],
        rngs: nnx.Rngs,
    ):
        params = cayley.init_conv(key_of(rngs), in_features, out_features, kernel_size=kernel_size)
        super().__init__(params, input_size)


class ReflectorConv(_FrequencyConv):
    """Block reflection at each frequency, the convolutional BRO layer; the channels stay.

    Args:
        channels: Channels of input and output.
        kernel_size: Window of the parameters.
        rank: Dimension of the reflected subspace; half of the channels by default.
        depth: Number of such layers in the network, for the initialization.
        input_size: Size of the images, one integer or (height, width).
        rngs: Random number generators.

    See `lipjax.layers.reflector`.
    """

    module = reflector

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        rank: int | None = None,
        depth: int = 1,
        input_size: int | tuple[int, int],
        rngs: nnx.Rngs,
    ):
        params = reflector.init_conv(
            key_of(rngs), channels, rank=rank, kernel_size=kernel_size, depth=depth
        )
        super().__init__(params, input_size)


class SandwichConv(_FrequencyConv):
    """The sandwich layer on images, circular, of one size; see `lipjax.layers.sandwich`.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Window of the parameters.
        activation: One with slopes in [0, 1].
        input_size: Size of the images, one integer or (height, width).
        rngs: Random number generators.
    """

    module = sandwich

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        activation="relu",
        input_size: int | tuple[int, int],
        rngs: nnx.Rngs,
    ):
        activations.slope_restricted(activation)
        params = sandwich.init_conv(
            key_of(rngs), in_features, out_features, kernel_size=kernel_size
        )
        super().__init__(params, input_size)
        self.activation = activation

    def apply(self, weights, x):
        self._check_size(x)
        return sandwich.apply_conv(weights, x, activation=self.activation)

    linear = None
