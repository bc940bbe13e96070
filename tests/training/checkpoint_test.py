"""Checkpoints: everything comes back, nothing half-written does, and other runs are refused."""

import functools
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lipjax.training import checkpoint, init_state, make_step
from lipjax.training.checkpoint import Checkpoints


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


class Network(nnx.Module):
    def __init__(self, key):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(2)])
        self.scale = nnx.Param(jax.random.normal(key, (2, 3)))


def loss_fn(network, batch, key):
    return jnp.mean(jnp.square(network.layers[1](network.layers[0](batch)))), {}


def trained(key, num_steps=3):
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(key, Network(key), optimizer)
    step = make_step(loss_fn, optimizer)
    for _ in range(num_steps):
        state, _ = step(state, jnp.ones((4, 3)))
    return state


def test_a_training_state_comes_back(tmp_path, key):
    state = trained(key)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        assert checkpoints.restore_latest(state) is None
        assert checkpoints.save(3, state, {"window": [0.1, float("nan")], "name": "é"})
    like = trained(jax.random.fold_in(key, 1), num_steps=0)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        restored, meta = checkpoints.restore_latest(like)
    assert_same(restored, state)
    assert meta["name"] == "é" and meta["window"][0] == 0.1 and np.isnan(meta["window"][1])
    assert np.abs(restored.params.scale[...] - like.params.scale[...]).max() > 0.1


def test_odd_leaves_and_names_come_back(tmp_path):
    tree = {
        "a/b.c": {"": jnp.arange(3, dtype=jnp.int32)},
        "a": [jnp.ones((2, 2), jnp.bfloat16), jnp.array(True), jnp.zeros((0, 3))],
        "['a'][0]": jnp.float32(jnp.nan),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "numpy": np.array([1.5, -0.0], np.float32),
        "complex": jnp.array([1 + 2j, -0.5j]),
        "none": None,
    }
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(0, tree)
        restored, meta = checkpoints.restore_latest(tree)
    assert meta == {}
    assert_same(restored, tree)
    assert np.signbit(restored["numpy"][1])


def test_a_bare_array_is_a_state(tmp_path):
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, jnp.arange(3.0))
        assert_same(checkpoints.restore_latest(jnp.zeros(3)).state, jnp.arange(3.0))


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    size = (1000, 1000)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: 0 * x - 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        for step in range(3):
            state = {"w": jnp.full(size, float(step))}
            checkpoints.save(step, state)
            state = overwrite(state)
            checkpoints.wait()
            stored = checkpoints.restore_latest(state).state["w"]
            assert (stored == step).all() and (state["w"] == -1).all()


def test_every_and_keep(tmp_path):
    state = {"w": jnp.zeros(2)}
    with Checkpoints(tmp_path, every=10, keep=2) as checkpoints:
        saved = [step for step in range(35) if checkpoints.save(step, state)]
        assert saved == [0, 10, 20, 30]
        assert checkpoints.save(33, state, force=True)
        assert not checkpoints.save(33, state, force=True)
        assert checkpoints.latest_step == 33
    assert sorted(path.name for path in tmp_path.iterdir()) == ["30", "33"]


def test_arrays_return_to_the_devices_of_the_state(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    values = jnp.arange(16.0).reshape(8, 2)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, {"w": jax.device_put(values, rows)})
        for target in (rows, everywhere, values.sharding):
            like = {"w": jax.device_put(jnp.zeros((8, 2)), target)}
            restored = checkpoints.restore_latest(like).state["w"]
            assert restored.sharding.is_equivalent_to(target, 2)
            np.testing.assert_array_equal(restored, values)


@pytest.mark.every
@pytest.mark.parametrize(
    "like, message",
    [
        ({"w": jnp.zeros((2, 3)), "v": jnp.zeros(2)}, r"float32\[3,2\] at \['w'\].*float32\[2,3\]"),
        ({"w": jnp.zeros((3, 2), jnp.bfloat16), "v": jnp.zeros(2)}, r"at \['w'\].*bfloat16"),
        ({"w": jnp.zeros((3, 2))}, r"float32\[2\] at \['v'\].*nothing"),
        ({"w": jnp.zeros((3, 2)), "v": jnp.zeros(2), "x": 0.0}, r"nothing at \['x'\]"),
        ({"w": jnp.zeros((3, 2)), "v": jax.random.key(0)}, r"at \['v'\].*key<fry>\[\]"),
    ],
)
def test_another_structure_is_refused_by_name(tmp_path, like, message):
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((3, 2)), "v": jnp.ones(2)})
        with pytest.raises(ValueError, match=message):
            checkpoints.restore_latest(like)


def test_another_configuration_is_refused_by_field(tmp_path):
    state = {"w": jnp.zeros(2)}
    with Checkpoints(tmp_path, every=1, config={"seed": 1, "sizes": (2, 3)}) as checkpoints:
        checkpoints.save(1, state)
    with Checkpoints(tmp_path, every=1, config={"sizes": [2, 3], "seed": 1}) as checkpoints:
        assert checkpoints.restore_latest(state) is not None
    for config, message in [
        ({"seed": 2, "sizes": (2, 3)}, "seed = 1; here seed = 2"),
        ({"seed": 1}, r"sizes = \[2, 3\]; here sizes = None"),
    ]:
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, every=1, config=config)


def test_a_reader_needs_no_configuration_and_leaves_it_alone(tmp_path):
    state = {"w": jnp.zeros(2)}
    with Checkpoints(tmp_path, every=1, config={"seed": 1}) as checkpoints:
        checkpoints.save(1, state)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        assert checkpoints.restore_latest(state) is not None
        checkpoints.save(2, state)
    with pytest.raises(ValueError, match="seed = 1; here seed = 2"):
        Checkpoints(tmp_path, every=1, config={"seed": 2})


def test_a_part_is_read_alone(tmp_path, key):
    state = trained(key)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(3, state)
        network = checkpoints.restore_latest(Network(jax.random.key(9)), part=".params").state
        assert_same(network, state.params)
        layers = checkpoints.restore_latest(list(state.params.layers), part=".params.layers").state
        assert_same(layers, list(state.params.layers))
        with pytest.raises(ValueError, match=r"at \.params\[0\]"):
            checkpoints.restore_latest([jnp.zeros(2)], part=".params")
        with pytest.raises(ValueError, match=r"nothing at \.param,"):
            checkpoints.restore_latest(jnp.zeros(2), part=".param")  # no part of this name


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="every is 0"):
        Checkpoints(tmp_path, every=0)
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, every=1, keep=0)
    with pytest.raises(ValueError, match="config is"):
        Checkpoints(tmp_path, every=1, config={"key": object()})
    with Checkpoints(tmp_path, every=1) as checkpoints:
        with pytest.raises(ValueError, match="meta is"):
            checkpoints.save(1, {"w": jnp.zeros(2)}, {"key": object()})
        assert checkpoints.latest_step is None


KILLED_WHILE_SAVING = """
import os, signal, sys
import jax
from lipjax.training.checkpoint import Checkpoints

state = {"w": jax.random.normal(jax.random.key(0), (4000, 2000))}  # takes a while to write
checkpoints = Checkpoints(sys.argv[1], every=1)
checkpoints.save(1, state)
checkpoints.wait()
print("first saved", flush=True)
checkpoints.save(2, {"w": 2 * state["w"]})
while not any(name.startswith("2") for name in os.listdir(sys.argv[1])):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_a_killed_save_leaves_the_previous_checkpoint(tmp_path):
    directory = tmp_path / "checkpoints"
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL and "first saved" in child.stdout, child.stderr
    names = sorted(os.listdir(directory))
    assert len(names) == 2 and names[0] == "1" and names[1].startswith("2.")  # half-written
    state = {"w": jax.random.normal(jax.random.key(0), (4000, 2000))}
    with Checkpoints(directory, every=1) as checkpoints:
        assert checkpoints.latest_step == 1
        assert_same(checkpoints.restore_latest(jax.tree.map(jnp.zeros_like, state)).state, state)
        assert checkpoints.save(2, state)
    with Checkpoints(directory, every=1) as checkpoints:
        assert checkpoints.latest_step == 2


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path):
    state = {"w": jnp.arange(100.0)}
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    for folder in (tmp_path / "2" / "state").rglob("d"):
        shutil.rmtree(folder)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        with pytest.raises(ValueError, match=r"2' is damaged.*Remove that directory"):
            checkpoints.restore_latest(state)
    shutil.rmtree(tmp_path / "2")
    with Checkpoints(tmp_path, every=1) as checkpoints:
        assert_same(checkpoints.restore_latest(state).state, state)


def test_a_changed_description_is_noticed(tmp_path):
    state = {"w": jnp.arange(3.0)}
    with Checkpoints(tmp_path, every=1, config={"lr": 0.125}) as checkpoints:
        checkpoints.save(1, state, {"epoch": 1})
    (file,) = (f for f in (tmp_path / "1" / "about").rglob("*") if b"0.125" in f.read_bytes())
    file.write_bytes(file.read_bytes().replace(b"0.125", b"0.250"))
    with pytest.raises(ValueError, match="damaged .its description has changed"):
        Checkpoints(tmp_path, every=1)


def test_a_copy_under_another_step_is_noticed(tmp_path):
    state = {"w": jnp.arange(3.0)}
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(2, state)
    shutil.copytree(tmp_path / "2", tmp_path / "3")
    with pytest.raises(ValueError, match=r"3' is damaged .it is a copy of that of step 2.*step 2"):
        Checkpoints(tmp_path, every=1)


def test_a_changed_bit_is_noticed(tmp_path):
    """Storage that returns other numbers than it was given: the checksum of the leaf differs."""
    state = {"w": jax.random.normal(jax.random.key(0), (64,)), "n": jnp.arange(5, dtype=jnp.uint8)}
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        read = checkpoints._manager.restore

        def restore(bit, *args, **kwargs):
            found = read(*args, **kwargs)
            if "state" in found.keys():
                name = next(k for k in found.state if "w" in k)
                bits = np.array(found.state[name]).view(np.uint32)
                bits[17] ^= np.uint32(1 << bit)
                found.state[name] = jnp.asarray(bits.view(np.float32))
            return found

        for bit in (0, 13, 31):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(checkpoints._manager, "restore", functools.partial(restore, bit))
                with pytest.raises(ValueError, match=r"damaged.*'w'.*no other one is left"):
                    checkpoints.restore_latest(state)
        assert_same(checkpoints.restore_latest(state).state, state)


def test_a_state_without_leaves_comes_back(tmp_path):
    for name, state in (("none", {}), ("empty", {"a": jnp.zeros((0, 3))})):
        with Checkpoints(tmp_path / name, every=1) as checkpoints:
            checkpoints.save(1, state, {"epoch": 2})
            restored, meta = checkpoints.restore_latest(state)
        assert_same(restored, state)
        assert meta == {"epoch": 2}


def test_checksums_tell_exchanged_entries_and_signs_apart():
    x = jnp.ones(1024).at[256].set(2.0)
    others = (-x, jnp.roll(x, 256), jnp.roll(x, 1), x[::-1])
    sums = {int(checkpoint._checksum(v)) for v in (x, *others)}
    assert len(sums) == 5


LIMITED = """
import resource, sys
import jax.numpy as jnp
from lipjax.training.checkpoint import Checkpoints

state = {"w": jnp.arange(2.0**16)}
checkpoints = Checkpoints(sys.argv[1], every=1)
checkpoints.save(1, state)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    checkpoints.save(2, {"w": state["w"] ** 2})
    checkpoints.wait()
except OSError as error:
    print("told:", error)
"""


def test_a_full_disk_is_named_and_what_was_complete_stays(tmp_path):
    """A real process whose files may not grow, which storage reports in words of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert "told:" in done.stdout and "could not be written" in done.stdout, done.stderr[-2000:]
    with Checkpoints(tmp_path / "run", every=1) as checkpoints:
        assert checkpoints.latest_step == 1
        like = {"w": jnp.zeros(2**16)}
        np.testing.assert_array_equal(
            checkpoints.restore_latest(like).state["w"], np.arange(2.0**16)
        )


def test_a_reader_goes_on_where_the_writer_has_deleted_what_it_was_about_to_read(tmp_path):
    states = [{"w": jnp.full(3, float(i))} for i in range(3)]
    with Checkpoints(tmp_path, every=1, keep=1) as writer:
        writer.save(1, states[1])
        writer.wait()
        with Checkpoints(tmp_path, every=1, keep=1) as reader:
            writer.save(2, states[2])
            writer.wait()
            assert reader.latest_step == 1 and not (tmp_path / "1").exists()
            assert_same(reader.restore_latest(states[0]).state, states[2])
            with pytest.raises(ValueError, match="does not fit"):
                reader.restore_latest({"v": jnp.zeros(3)})
