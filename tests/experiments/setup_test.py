"""Losses of configs: each of the smoothed ones trains the network of a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments import setup, train
from experiments.loops.supervised import Batch
from lipjax import nn, training
from lipjax.smoothing import losses

NOISY = [name for name in configs.NOISY_LOSSES if name != "plain"]


def small(*more):
    return configs.override(
        configs.load("smooth_digits"), ["model.hidden=8", "epochs=1", "noise=0.5", *more]
    )


@pytest.mark.few(1)
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


SHORT = ["model.dense_depth=2", "model.dense_width=64", "model.dense_hidden=32", "epochs=1"]
OPTIONS = {"certificate_regularized": ["gamma=0.5"]}


def digits(loss, *more):
    assignments = [f"loss={loss}", *OPTIONS.get(loss, []), *SHORT, *more]
    return configs.override(configs.load("digits"), assignments)


EXPECTED = {
    "cross_entropy": lambda f, y, c: training.cross_entropy(f, y, offset=0.9, temperature=0.15),
    "multi_margin": lambda f, y, c: training.margin_loss(f, y, margin=0.7),
    "certificate_regularized": lambda f, y, c: training.certificate_regularized(f, y, gamma=0.5, **c),
    "hkr": lambda f, y, c: training.hkr(f, y, alpha=10.0, min_margin=1.0),
    "emma": lambda f, y, c: training.emma(f, y, epsilon=3 * 36 / 255, **c),
    "logit_annealing": lambda f, y, c: training.logit_annealing(
        training.emma_logits(f, y, epsilon=3 * 36 / 255, **c),
        y, offset=2.0, temperature=0.75, beta=5.0,
    ),
}  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("loss", configs.LOSSES)
def test_a_loss_of_margins_is_that_of_the_library(loss):
    config = digits(loss, "model.std=0.5")  # whose constant is 2
    model = nn.constrain(setup.network(config))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((4, 8, 8, 1)), jnp.float32)
    batch = Batch(images, jnp.arange(4))
    with jax.numpy_dtype_promotion("standard"):
        found, metrics = setup.loss(config)(model, batch, jax.random.key(0))
        known = {"lipschitz": 2.0, "head": model.class_vectors()}
        each = [EXPECTED[loss](f, y, known) for f, y in zip(model(images), batch.labels)]
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)
    assert 0 <= metrics["accuracy"] <= 1


def test_the_radius_that_emma_trains_for_grows_over_the_first_half():
    config = digits("emma")
    model = nn.constrain(setup.network(config))
    images = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)
    head = model.class_vectors()
    for progress, factor in ((0.0, 0.1), (0.25, 1.55), (0.5, 3.0), (1.0, 3.0)):
        batch = Batch(images, jnp.arange(4), jnp.float32(progress))
        with jax.numpy_dtype_promotion("standard"):
            found, _ = setup.loss(config)(model, batch, jax.random.key(0))
            each = [
                training.emma(f, y, epsilon=factor * 36 / 255, lipschitz=1.0, head=head)
                for f, y in zip(model(images), batch.labels)
            ]
        np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("loss", configs.LOSSES)
def test_every_loss_trains(loss, tmp_path):
    options = [f"loss={loss}", *OPTIONS.get(loss, []), *SHORT, "batch_size=720", "noise=0"]
    with jax.numpy_dtype_promotion("standard"):
        run = train.main(["digits", *options, "--run-dir", str(tmp_path / "run")])
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 2 and line["skipped"] == 0 and np.isfinite(line["loss"])


@pytest.mark.few(1)
@pytest.mark.parametrize("loss", ["emma", "multi_margin"])
def test_losses_of_margins_learn_the_digits(loss, tmp_path):
    options = [f"loss={loss}", *SHORT, "epochs=30", "batch_size=240", "noise=0", "affine=()"]
    with jax.numpy_dtype_promotion("standard"):
        run = train.main(["digits", *options, "--run-dir", str(tmp_path / "run")])
    *_, last = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert last["accuracy"] > 0.85 and last["skipped"] == 0


@pytest.mark.slow
def test_the_loop_tells_the_loss_how_far_it_is(tmp_path, monkeypatch):
    seen = setup.loss

    def loss(config):
        def loss_fn(model, batch, key):
            value, metrics = seen(config)(model, batch, key)
            return value, metrics | {"progress": batch.progress}

        return loss_fn

    monkeypatch.setattr(setup, "loss", loss)
    options = [*SHORT, "batch_size=360", "epochs=1"]
    with jax.numpy_dtype_promotion("standard"):
        run = train.main(["digits", *options, "--run-dir", str(tmp_path / "run")])
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 4 and line["progress"] == pytest.approx((0 + 1 + 2 + 3) / 16)


def test_optimizer_of_a_config():
    params, steps = jnp.ones(3), {}
    for options in (["optimizer=adam"], ["optimizer=nadam"], ["schedule=cosine"], ["clip=1"]):
        optimizer = setup.optimizer(digits("emma", *options), 80)
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(params)
            for size in (10.0, 5.0, 0.1):
                update, state = optimizer.update(jnp.full(3, size), state, params)
        steps[options[0]] = np.asarray(update)
    assert len({row.tobytes() for row in steps.values()}) == 4  # each acts
    schedule = setup.SCHEDULES["cosine"](0.01, 80)
    rates = [schedule(t) for t in (0, 1, 2, 41, 80)]
    np.testing.assert_allclose(rates, [0, 0.005, 0.01, 0.005, 0], rtol=1e-5)
