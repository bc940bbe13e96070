"""The comparison study's network: published sizes, a bound that holds, a layer of every kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import margin, nn
from lipjax.attacks import lipschitz_lower_bound
from lipjax.models import StudyNet, StudyNetConfig
from lipjax.models.convnet import CONVOLUTIONAL

SMALL = StudyNetConfig(image_shape=(8, 8, 2), num_classes=4, width=4, blocks=2, block_depth=1)


@pytest.mark.parametrize("width,millions", [(16, 1.57), (32, 6.28), (64, 25.1), (128, 100.4)])
def test_published_sizes(width, millions):
    """Weights of convolutions; every kind of the study has one matrix per convolution."""
    model = jax.eval_shape(lambda: StudyNet(StudyNetConfig(width=width), rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert abs(count / 1e6 - millions) <= 0.02 * millions


@pytest.mark.parametrize("layer", CONVOLUTIONAL)
def test_every_layer_makes_one(layer):
    model = nnx.eval_shape(
        lambda: StudyNet(dataclasses.replace(SMALL, layer=layer), rngs=nnx.Rngs(0))
    )
    logits = jax.eval_shape(lambda m, x: m(x), model, jnp.ones((3, 8, 8, 2)))
    assert logits.shape == (3, 4)


def test_bounds_hold_and_are_one():
    model = StudyNet(SMALL, rngs=nnx.Rngs(0))
    frozen = nn.freeze(model)
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 2))
    np.testing.assert_allclose(frozen(x), model(x), atol=2e-2)
    bound = frozen.bound()
    assert bound.kind == "upper" and bound.value <= 1 + 1e-5
    found = lipschitz_lower_bound(jax.random.key(1), frozen, x, num_ascent_steps=3)
    assert 0.001 < float(found.value) <= bound.value


def test_two_logits_differ_by_the_root_of_two():
    frozen = nn.freeze(StudyNet(SMALL, rngs=nnx.Rngs(0)))
    logits = frozen(jnp.ones((8, 8, 2)))
    options = dict(lipschitz=frozen.feature_bound())
    with_head = margin.certify(logits, head=frozen.class_vectors(), **options)
    without = margin.certify(logits, **options)
    np.testing.assert_allclose(with_head.radius, without.radius, rtol=1e-5)


@pytest.mark.every
@pytest.mark.parametrize(
    "changes,word",
    [
        (dict(layer="bjorck"), "layer is 'bjorck'"),
        (dict(image_shape=(6, 6, 2)), "multiples of 4"),
        (dict(width=1), "width is 1"),
        (dict(layer="skew", kernel_size=2), "kernel_size is 2 and layer is 'skew'"),
        (dict(num_classes=17), "only 16 outputs"),
        (dict(mean=(1.0, 2.0, 3.0)), "mean is"),
        (dict(activation="nothing"), "activation is 'nothing'"),
    ],
)
def test_bad_configurations_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match="x has shape"):
        StudyNet(SMALL, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 8, 1)))


def test_zeros_around_the_image():
    config = dataclasses.replace(SMALL, image_shape=(6, 6, 2), pad=1)
    model = StudyNet(config, rngs=nnx.Rngs(0))
    plain = StudyNet(SMALL, rngs=nnx.Rngs(0))
    x = jax.random.uniform(jax.random.key(0), (2, 6, 6, 2))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(model(x), plain(padded), atol=1e-6)
