"""Losses of configs: each of the smoothed ones trains the network of a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments import setup, train
from experiments.loops.supervised import Batch
from lipjax.smoothing import losses

NOISY = [name for name in configs.NOISY_LOSSES if name != "plain"]


def small(*more):
    return configs.override(
        configs.load("smooth_digits"), ["model.hidden=8", "epochs=1", "noise=0.5", *more]
    )


@pytest.mark.parametrize("name", NOISY)
def test_is_the_mean_of_the_loss_of_every_image(name):
    config = small(f"noisy_loss={name}", "num_noise=3", "attack_eps=0.1")
    with jax.numpy_dtype_promotion("standard"):
        model = setup.network(config)
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.random((4, 8, 8, 1)), jnp.float32)
        batch, key = Batch(images, jnp.arange(4)), jax.random.key(3)
        found, metrics = setup.loss(config)(model, batch, key)
        options = {"eps": 0.1} if name == "smooth_adv" else {}
        each = [
            getattr(losses, name)(k, lambda x: model(x), x, y, sigma=0.5, num_noise=3, **options)
            for k, x, y in zip(jax.random.split(key, 4), images, batch.labels)
        ]
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)
    assert 0 <= metrics["accuracy"] <= 1
    assert setup.augmentation(config) is None  # the loss adds the noise
    assert setup.augmentation(small()) is not None


def test_trains(tmp_path):
    options = ["model.hidden=64", "epochs=20", "noisy_loss=macer", "noise=0.25", "num_noise=2"]
    with jax.numpy_dtype_promotion("standard"):
        run = train.main(["smooth_digits", *options, "--run-dir", str(tmp_path / "run")])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert '"skipped": 0' in lines[-1]
    accuracy = [json.loads(line)["accuracy"] for line in (lines[0], lines[-1])]
    assert accuracy[1] > max(0.6, accuracy[0])
