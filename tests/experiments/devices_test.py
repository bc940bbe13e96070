"""Training on several devices: the same parameters, shared constraints, runs that change devices."""

import functools

import jax
import numpy as np
import pytest

from experiments import config as configs
from experiments import setup, train
from experiments.loops import supervised
from lipjax import nn
from lipjax.training.checkpoint import Checkpoints

SHORT = ["model.dense_depth=3", "model.dense_width=64", "model.dense_hidden=32", "batch_size=240"]
SHORT += ["checkpoint_every=3", "epochs=2"]


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """All of them, here."""


def parameters(run, config):
    with Checkpoints(run / "checkpoints", every=1) as checkpoints:
        restored = checkpoints.restore_latest(setup.network(config), part=".params")
        return checkpoints.latest_step, jax.tree.leaves(restored.state)


@pytest.fixture(scope="module")
def config():
    return configs.override(configs.load("digits"), SHORT)


@pytest.fixture(scope="module")
def on_one(config, tmp_path_factory):
    """The parameters of a run on one device."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(setup, "mesh", lambda config: None)
        run = train.train(config, tmp_path_factory.mktemp("one") / "run")
    return parameters(run, config)


def assert_alike(found, expected):
    assert found[0] == expected[0] == 12
    for got, want in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.few(1)
def test_eight_devices_train_as_one(config, on_one, tmp_path, monkeypatch):
    meshes, states = [], []
    constrain, loop = nn.constrain, supervised.train
    monkeypatch.setattr(
        nn, "constrain", lambda model, **kw: meshes.append(kw) or constrain(model, **kw)
    )
    monkeypatch.setattr(
        supervised, "train", lambda *a, **k: states.append(loop(*a, **k)) or states[0]
    )
    run = train.train(config, tmp_path / "run")
    assert_alike(parameters(run, config), on_one)
    assert {(kw["mesh"].size, kw["axis"]) for kw in meshes} == {(8, "data")}
    for leaf in jax.tree.leaves(states[0]):
        assert len(leaf.sharding.device_set) == 8 and leaf.sharding.is_fully_replicated


def test_steps_on_emulated_devices_do_not_queue(config, tmp_path, monkeypatch):
    """Two at a time wait for each other's threads for ever where cores are few and busy."""
    waited = []
    ready = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(1) or ready(x))
    train.train(config, tmp_path / "run")
    assert len(waited) >= 12
    waited.clear()
    monkeypatch.setattr(setup, "mesh", lambda config: None)
    train.train(config, tmp_path / "one")
    assert len(waited) < 12


@pytest.mark.slow
@pytest.mark.parametrize("first", ["one", "eight"])
def test_a_run_goes_on_with_other_devices(first, config, on_one, tmp_path, monkeypatch):
    mesh = setup.mesh
    choose = {"one": lambda config: None, "eight": mesh}
    indices = supervised.batch_indices

    def interrupt(seed, step, **sizes):
        if step == 10:  # while the indices after the checkpoint at step 3 or 6 are made
            raise KeyboardInterrupt
        return indices(seed, step, **sizes)

    monkeypatch.setattr(supervised, "batch_indices", interrupt)
    monkeypatch.setattr(supervised, "train", functools.partial(supervised.train, chunk=3))
    monkeypatch.setattr(setup, "mesh", choose.pop(first))
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "run")
    stopped, _ = parameters(tmp_path / "run", config)
    assert 0 < stopped < 12
    monkeypatch.setattr(supervised, "batch_indices", indices)
    monkeypatch.setattr(setup, "mesh", *choose.values())
    assert_alike(parameters(train.train(config, tmp_path / "run"), config), on_one)


@pytest.mark.slow
def test_devices_that_do_not_divide_a_batch_are_left_alone(config, tmp_path, capsys):
    other = configs.override(config, ["batch_size=100", "epochs=1"])
    assert setup.mesh(config).size == 8 and setup.mesh(other) is None
    assert setup.mesh(configs.override(config, ["num_microbatches=4"])) is None
    train.train(other, tmp_path / "run")
    assert (
        "note: one of 8 devices trains; for all of them batch_size, 100" in capsys.readouterr().out
    )


def test_a_mesh_that_does_not_fit_is_named(config, tmp_path):
    data = setup.dataset(config)
    options = dict(max_value=16, optimizer=None, num_steps=1, seed=0, run_dir=tmp_path / "run")
    mesh = setup.mesh(config)
    with pytest.raises(ValueError, match="mesh has 8 devices, batch_size is 100"):
        supervised.train(None, None, data.train, batch_size=100, mesh=mesh, **options)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=auto)
    with pytest.raises(ValueError, match="mesh has the axes .'data', 'model'.; it must have one"):
        supervised.train(None, None, data.train, batch_size=240, mesh=mesh, **options)
    assert not (tmp_path / "run").exists()
