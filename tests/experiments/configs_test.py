"""The published networks: each config makes one of the published size, and its step traces."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from experiments import config as configs
from experiments import setup
from experiments.loops.supervised import Batch
from lipjax import nn
from lipjax.training import init_state, make_update

PUBLISHED = {
    "cifar10_s": 41,
    "cifar10_m": 78,
    "cifar10_l": 118,
    "cifar10_xl": 236,
    "cifar10_cpl": 41,
    "cifar10_liresnet": 83,
    "cifar10_bronet": 68,
}
"""Millions of parameters."""


def test_every_config_of_cifar10_has_its_published_size_here():
    assert set(PUBLISHED) == {name for name in configs.names() if name.startswith("cifar10")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name):
    config = configs.load(name)
    model = jax.eval_shape(lambda: setup.network(config))
    millions = sum(leaf.size for leaf in jax.tree.leaves(model)) / 1e6
    assert abs(millions - PUBLISHED[name]) < 0.9  # papers round down or to the nearest


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"cifar10_s"}))
def test_what_was_not_run_says_so(name):
    text = importlib.import_module(f"experiments.configs.{name}").__doc__
    assert text.count("not run here") == 2  # neither a time nor a result of ours


@pytest.mark.parametrize("name", ["cifar10_m", "cifar10_cpl", "cifar10_liresnet", "cifar10_bronet"])
def test_its_step_traces(name):
    """Optimizer, loss, augmentation and network fit; nothing is computed."""
    config = configs.load(name)
    optimizer, loss = setup.optimizer(config, 1000), setup.loss(config)
    augment = jax.vmap(setup.augmentation(config))

    def step(images, labels):
        state = init_state(jax.random.key(0), setup.network(config), optimizer)
        images = augment(jax.random.split(jax.random.key(1), len(images)), images)
        update = make_update(loss, optimizer, constrain=nn.constrain)
        return update(state, Batch(images, labels, jnp.float32(0.3)))

    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        _, metrics = jax.eval_shape(step, images, jax.ShapeDtypeStruct((4,), jnp.int32))
    assert metrics["loss"].shape == () and "accuracy" in metrics
