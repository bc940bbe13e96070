"""An ordinary network, without a bound: for noise alone to make stable."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lipjax import _checks


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """A network of dense layers and rectifiers.

    Attributes:
        image_shape: Height, width and channels.
        num_classes: Number of classes.
        hidden: Widths of the layers before the last.
        mean: Taken off each channel.
        layer: What the figure calls it.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    hidden: tuple[int, ...] = (512, 256)
    mean: tuple[float, ...] = (0.0,)
    layer: str = "plain"

    def __post_init__(self):
        _checks.integer(2, num_classes=self.num_classes)
        for width in self.hidden:
            _checks.integer(1, hidden=width)
        if len(self.mean) != self.image_shape[-1]:
            raise ValueError(
                f"mean is {self.mean}; it must hold {self.image_shape[-1]} numbers, one a channel."
            )


class PlainNet(nnx.Module):
    """Dense layers with rectifiers between them."""

    def __init__(self, config: PlainConfig, *, rngs: nnx.Rngs):
        height, width, channels = config.image_shape
        widths = (height * width * channels, *config.hidden, config.num_classes)
        self.layers = nnx.List(
            [nnx.Linear(n, m, rngs=rngs) for n, m in zip(widths[:-1], widths[1:])]
        )
        self.mean = config.mean

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images - jnp.asarray(self.mean, images.dtype)[None, None, None]
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)
