"""Convolutions at the frequencies of images of one size; see also the tests of all contractions."""

import jax.numpy as jnp
import pytest
from flax import nnx

from lipjax import nn


@pytest.mark.every
@pytest.mark.parametrize(
    "make",
    [
        lambda size, rngs: nn.CayleyConv(2, 2, input_size=size, rngs=rngs),
        lambda size, rngs: nn.Residual(nn.ReflectorConv(2, input_size=size, rngs=rngs)),
        lambda size, rngs: nn.SandwichConv(2, 2, input_size=size, rngs=rngs),
    ],
)
def test_images_of_another_width_are_refused_also_with_as_many_frequencies(make):
    layer = make((4, 5), nnx.Rngs(0))
    assert layer(jnp.ones((1, 4, 5, 2))).shape == (1, 4, 5, 2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 4, 4, 2\).*input_size=\(4, 5\)"):
        layer(jnp.ones((1, 4, 4, 2)))
