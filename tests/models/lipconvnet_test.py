"""LipConvNet: the paper's shapes, a bound that holds, every contraction, bad configurations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import margin, nn
from lipjax.attacks import lipschitz_lower_bound
from lipjax.models import LipConvNet, LipConvNetConfig
from lipjax.models._parts import CONTRACTIONS
from tests.marks import slow

SMALL = LipConvNetConfig(image_shape=(8, 8, 2), num_classes=4, width=4, blocks=2, block_depth=2)


def built(config):
    return nnx.eval_shape(lambda: LipConvNet(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("depth", [1, 2])
def test_channels_double_and_images_halve(depth):
    """As the paper has them: 32 channels become 64 in the first block and 1024 in the last."""
    config = LipConvNetConfig(block_depth=depth, layer="aol")
    model = built(config)
    kernels = [halving.free.get_value().kernel.shape for halving in model.halvings]
    first = 4 * (3 if depth == 1 else 32)
    assert [k[-2:] for k in kernels] == [
        (first, 64),
        (256, 128),
        (512, 256),
        (1024, 512),
        (2048, 1024),
    ]
    assert [k[0] for k in kernels] == [3, 3, 3, 3, 1]
    assert config.features == 1024
    rows = [row.free.get_value().kernel.shape for row in model.rows]
    assert rows == [(depth - 1, 3, 3, c, c) for c in (32, 64, 128, 256, 512)][: 5 * (depth - 1)]


@pytest.mark.parametrize("layer", CONTRACTIONS)
def test_every_layer_makes_one(layer):
    model = built(dataclasses.replace(SMALL, layer=layer))
    logits = jax.eval_shape(lambda m, x: m(x), model, jnp.ones((3, 8, 8, 2)))
    assert logits.shape == (3, 4)


@pytest.mark.parametrize("layer,depth", [slow("aol", 2), ("cayley", 1)])
def test_bounds_hold_and_are_one(layer, depth):
    config = dataclasses.replace(SMALL, layer=layer, block_depth=depth, pad=2, blocks=2)
    frozen = nn.freeze(LipConvNet(config, rngs=nnx.Rngs(0)))
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 2))
    bound = frozen.feature_bound()
    assert bound.kind == "upper" and bound.value <= 1 + 1e-5
    found = lipschitz_lower_bound(jax.random.key(1), frozen.features, x, num_ascent_steps=3)
    assert 0.5 < float(found.value) <= bound.value
    assert frozen.bound().value >= bound.value
    certified = margin.certify(frozen(x[0]), head=frozen.class_vectors(), lipschitz=bound)
    assert np.isfinite(certified.radius)


@pytest.mark.every
@pytest.mark.parametrize(
    "changes,word",
    [
        (dict(layer="sll"), "layer is 'sll'"),
        (dict(image_shape=(6, 6, 2)), "multiples of 4"),
        (dict(image_shape=(8, 8)), "image_shape is"),
        (dict(width=1), "width is 1"),
        (dict(mean=(1.0, 2.0, 3.0)), "mean is"),
        (dict(mean=float("nan")), "mean is"),
        (dict(activation="nothing"), "activation is 'nothing'"),
        (dict(block_depth=0), "block_depth is 0"),
    ],
)
def test_bad_configurations_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMALL, **changes)


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match="x has shape"):
        LipConvNet(SMALL, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="config is 'S'"):
        LipConvNet("S", rngs=nnx.Rngs(0))
