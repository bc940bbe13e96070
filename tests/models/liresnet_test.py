"""The LiResNet and BRONet style network: published sizes, a bound that holds, every contraction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from lipjax.attacks import lipschitz_lower_bound
from lipjax.models import LiResNet, LiResNetConfig
from lipjax.models._parts import CONTRACTIONS

SMALL = LiResNetConfig(
    image_shape=(8, 8, 1),
    num_classes=4,
    width=6,
    depth=2,
    patch=2,
    dense_width=16,
    dense_depth=1,
)


@pytest.mark.parametrize("layer,millions", [("spectral", 82.94), ("reflector", 68.8)])
def test_published_sizes(layer, millions):
    """LiResNet L12W512 has 83 and BRONet 68 million parameters."""
    config = LiResNetConfig(layer=layer)
    model = jax.eval_shape(lambda: LiResNet(config, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert abs(count / 1e6 - millions) < 0.05


@pytest.mark.parametrize("layer", [*CONTRACTIONS, "reflector"])
def test_every_layer_makes_one(layer):
    config = dataclasses.replace(SMALL, layer=layer)
    model = nnx.eval_shape(lambda: LiResNet(config, rngs=nnx.Rngs(0)))
    logits = jax.eval_shape(lambda m, x: m(x), model, jnp.ones((3, 8, 8, 1)))
    assert logits.shape == (3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["aol", "reflector"])
def test_bounds_hold_and_are_one(layer):
    model = LiResNet(dataclasses.replace(SMALL, layer=layer), rngs=nnx.Rngs(0))
    leaves, treedef = jax.tree.flatten(model)  # away from the identity
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [w + 0.1 * jax.random.normal(key, w.shape) for key, w in zip(keys, leaves)]
    frozen = nn.freeze(jax.tree.unflatten(treedef, noisy))
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    bound = frozen.feature_bound()
    assert bound.kind == "upper" and bound.value <= 1 + 1e-5
    found = lipschitz_lower_bound(jax.random.key(1), frozen.features, x, num_ascent_steps=3)
    assert 0.05 < float(found.value) <= bound.value
    assert frozen.class_vectors().shape == (16, 4)


@pytest.mark.slow
def test_the_first_network_keeps_the_image():
    """The initial trunk is the identity, and the matrices are isometries up to their epsilon."""
    config = dataclasses.replace(SMALL, activation="full_sort", dense_width=64, width=4)
    model = LiResNet(config, rngs=nnx.Rngs(0))
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    stem = model.stem(jnp.zeros((3, 4, 4, 4)))
    np.testing.assert_allclose(model.trunk(stem), stem, atol=1e-6)
    assert model.features(x).shape == (3, 64)


@pytest.mark.every
@pytest.mark.parametrize(
    "changes,word",
    [
        (dict(layer="sll"), "layer is 'sll'"),
        (dict(patch=3), "patch is 3"),
        (dict(pad=1), "multiples of 4"),
        (dict(width=0), "width is 0"),
        (dict(mean=(1.0, 2.0)), "mean is"),
        (dict(activation="nothing"), "activation is 'nothing'"),
    ],
)
def test_bad_configurations_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMALL, **changes)


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match="x has shape"):
        LiResNet(SMALL, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="config is 'L12W512'"):
        LiResNet("L12W512", rngs=nnx.Rngs(0))
