"""The networks: published sizes, bounds that hold, certificates that no attack breaks."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import margin, nn
from lipjax.attacks import lipschitz_lower_bound, pgd
from lipjax.models import SIZES, ConvNetConfig, LipschitzConvNet, _parts, num_parameters
from lipjax.models.convnet import CONVOLUTIONAL, INSIDE, LAYERS

SMALL = ConvNetConfig(
    image_shape=(8, 8, 2),
    num_classes=4,
    conv_depth=2,
    conv_width=6,
    conv_hidden=3,
    pool=2,
    dense_depth=2,
    dense_hidden=16,
    mean=(0.3, 0.5),
)


jitted = jax.jit(lambda module, x: module(x))


@pytest.mark.parametrize("name,millions", [("S", 41.4), ("M", 78.8), ("L", 118.3), ("XL", 236.4)])
def test_published_sizes(name, millions):
    assert round(num_parameters(name) / 1e6, 1) == millions


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "layer,form", [(layer, "linear") for layer in LAYERS] + [("skew", "residual")]
)
def test_bounds_hold_and_are_one(layer, form):
    depth = 1 if layer in CONVOLUTIONAL else 0
    config = dataclasses.replace(SMALL, layer=layer, form=form, conv_depth=depth)
    model = LipschitzConvNet(config, rngs=nnx.Rngs(0))
    frozen = nn.freeze(model)
    x = jax.random.uniform(jax.random.key(0), (8, 8, 8, 2))
    features, logits = frozen.feature_bound(), frozen.bound()
    assert features.kind == logits.kind == "upper"
    assert features.value <= 1 + 1e-5 and 1 <= logits.value <= 2
    if layer not in ("sll", "cpl", "aol"):
        np.testing.assert_allclose(jitted(frozen, x), jitted(model, x), atol=2e-2)
        return
    key = jax.random.key(1)
    apply = jax.tree_util.Partial(lambda m, x: m.features(x), frozen)
    assert float(lipschitz_lower_bound(key, apply, x, num_ascent_steps=5).value) <= features.value
    assert float(lipschitz_lower_bound(key, frozen, x, num_ascent_steps=5).value) <= logits.value


def test_input_normalization_is_counted():
    plain = LipschitzConvNet(SMALL, rngs=nnx.Rngs(0))
    divided = LipschitzConvNet(dataclasses.replace(SMALL, std=(0.5, 0.25)), rngs=nnx.Rngs(0))
    ratio = divided.feature_bound().value / plain.feature_bound().value
    assert 4 <= ratio <= 4.0001


@pytest.mark.slow
def test_circular_dense_only_and_patched_networks():
    for changes in (
        {"conv_depth": 0},
        {"dense_depth": 0},
        {"patch": 2, "conv_width": 8},
        {"dense_width": 200},
    ):
        config = dataclasses.replace(SMALL, **changes)
        model = LipschitzConvNet(config, rngs=nnx.Rngs(0))
        assert model(jnp.ones((3, 8, 8, 2))).shape == (3, 4)
        assert model.feature_bound().value <= 1 + 1e-5


@pytest.mark.slow
def test_no_attack_breaks_a_certificate_of_a_fitted_network():
    """Fitted to random labels, so that the certified regions are as crooked as they can be."""
    import optax

    key = jax.random.key(0)
    x = jax.random.uniform(key, (256, 8, 8, 2))
    y = jax.random.randint(key, (256,), 0, 4, jnp.int32)
    model = LipschitzConvNet(SMALL, rngs=nnx.Rngs(0))

    @jax.jit
    def step(model, state):
        def loss(model):
            logits = model(x)
            return optax.softmax_cross_entropy_with_integer_labels(10 * logits, y).mean()

        updates, state = optimizer.update(jax.grad(loss)(model), state, model)
        return optax.apply_updates(model, updates), state

    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(0.01)
        state = optimizer.init(model)
        for _ in range(60):
            model, state = step(model, state)
    frozen = nn.freeze(model)
    head, bound = frozen.head.weights().kernel, frozen.feature_bound()
    certificate = jax.vmap(
        lambda f: margin.certify(f, lipschitz=bound, head=head, logit_error=1e-5)
    )(frozen(x))
    assert float((certificate.prediction == y).mean()) > 0.4
    found = pgd(key, frozen, x, certificate.prediction, eps=certificate.radius, num_steps=40)
    assert not np.asarray(found.success)[np.asarray(certificate.radius) > 0].any()
    # Negative control: at four times the radius, the attack does succeed somewhere.
    farther = pgd(key, frozen, x, certificate.prediction, eps=4 * certificate.radius, num_steps=40)
    assert np.asarray(farther.success).any()


def test_a_network_exports_for_accelerators():
    model = nn.freeze(LipschitzConvNet(SMALL, rngs=nnx.Rngs(0)))
    leaves, treedef = jax.tree.flatten(model)
    fn = jax.jit(lambda leaves, x: jax.tree.unflatten(treedef, leaves)(x))
    exported = jax.export.export(fn, platforms=("tpu", "cuda"))(leaves, jnp.ones((2, 8, 8, 2)))
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.every
@pytest.mark.parametrize(
    "changes,word",
    [
        ({"layer": "resnet"}, "layer is 'resnet'"),
        ({"pool": 3}, "pool is 3"),
        ({"layer": "skew", "kernel_size": 2}, "kernel_size is 2 and layer is 'skew'"),
        (
            {"layer": "block", "image_shape": (8, 8, 1), "patch": 1, "conv_width": 1},
            "layer is 'block' and its convolutions have 1 channel",
        ),
        ({"conv_width": 1}, "conv_width is 1"),
        ({"dense_width": 5}, "dense_width is 5"),
        ({"mean": (0.1, 0.2, 0.3)}, "mean"),
        ({"std": (0.0,)}, "std"),
        ({"num_classes": 0}, "classes"),
        ({"image_shape": (8, 8)}, "image_shape"),
    ],
)
def test_bad_configs_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMALL, **changes)


def test_bad_images_are_named():
    model = LipschitzConvNet(SMALL, rngs=nnx.Rngs(0))
    for layer in INSIDE:
        with pytest.raises(ValueError, match="form is 'residual'"):
            dataclasses.replace(SMALL, layer=layer, form="residual")
    with pytest.raises(ValueError, match="has no convolution"):
        dataclasses.replace(SMALL, layer="bjorck")
    with pytest.raises(ValueError, match="x has shape.*8, 8, 2"):
        model(jnp.ones((3, 8, 8, 1)))
    with pytest.raises(ValueError, match="dtype uint8"):
        model(jnp.ones((3, 8, 8, 2), jnp.uint8))
    with pytest.raises(ValueError, match="config is 'XS'"):
        LipschitzConvNet("XS", rngs=nnx.Rngs(0))
    assert set(SIZES) >= {"S", "M", "L", "XL"}


def test_images_of_lists_and_in_float64_are_taken_quietly():
    model = LipschitzConvNet(SMALL, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 2))
    expected = model(jnp.asarray(x, jnp.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model(x), expected)
    np.testing.assert_array_equal(model(x.tolist()), expected)
    with pytest.raises(ValueError, match="x is None"):
        model(None)


@pytest.mark.parametrize("dense_width,num_classes", [(None, 18), (100, 98)])
def test_a_projection_reads_features_channel_by_channel(dense_width, num_classes):
    config = dataclasses.replace(
        SMALL, head="projection", dense_depth=0, dense_width=dense_width, num_classes=num_classes
    )
    model = nn.freeze(LipschitzConvNet(config, rngs=nnx.Rngs(0)))
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 2))
    features = np.asarray(model.features(x))
    height, width = (side // (config.pool * config.patch) for side in config.image_shape[:2])
    images = features[:, : config.flat_features].reshape(3, height, width, -1)
    counted = images.transpose(0, 3, 1, 2).reshape(3, -1)
    counted = np.concatenate([counted, features[:, config.flat_features :]], 1)
    np.testing.assert_allclose(model(x), counted[:, :num_classes], atol=1e-6)
    assert model.bound().value == model.feature_bound().value
    with pytest.raises(ValueError, match="head is 'projection' and num_classes is 2000"):
        dataclasses.replace(config, num_classes=2000)


@pytest.mark.few(1)
def test_an_orthogonal_head_makes_all_logits_one_lipschitz():
    config = ConvNetConfig(
        image_shape=(4, 4, 1),
        num_classes=3,
        conv_depth=0,
        pool=1,
        dense_depth=1,
        dense_hidden=8,
        head="orthogonal",
    )
    frozen = nn.freeze(LipschitzConvNet(config, rngs=nnx.Rngs(0)))
    vectors = np.asarray(frozen.class_vectors())
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-5)
    assert float(frozen.bound().value) <= 1 + 1e-5
    wide = dataclasses.replace(config, head="normalized")
    assert float(nn.freeze(LipschitzConvNet(wide, rngs=nnx.Rngs(0))).bound().value) > 1.01
    logits, options = frozen(jnp.ones((4, 4, 1))), dict(lipschitz=frozen.feature_bound())
    with_head = margin.certify(logits, head=frozen.class_vectors(), **options)
    np.testing.assert_allclose(with_head.radius, margin.certify(logits, **options).radius, 1e-4)
    with pytest.raises(ValueError, match="head is 'orthogonal' and num_classes is 20"):
        dataclasses.replace(config, num_classes=20)
    with pytest.raises(ValueError, match="head is 'linear'"):
        dataclasses.replace(config, head="linear")


@pytest.mark.parametrize("places", [(0, 0), (0, 4), (-1, 2)], ids=str)
def test_a_projection_takes_every_feature_once(places):
    with pytest.raises(ValueError, match="places is .*; they must be different and lie in .0, 3."):
        _parts.Projection(4, places)
