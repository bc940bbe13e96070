"""Files of arrays: what was written comes back, and what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from lipjax.models import ConvNetConfig, LipschitzConvNet
from tests.nn import modules

pytest.importorskip("safetensors", reason="safetensors is not installed")

SMALL = ConvNetConfig(
    image_shape=(8, 8, 1), conv_depth=2, conv_width=4, conv_hidden=3, pool=2, dense_depth=2,
    dense_hidden=8,
)  # fmt: skip


def model(seed, **changes):
    return LipschitzConvNet(SMALL, rngs=nnx.Rngs(seed))


@pytest.mark.parametrize("make", [lambda m: m, nn.freeze], ids=["free", "frozen"])
def test_what_was_written_comes_back(make, tmp_path):
    path = tmp_path / "model.safetensors"
    first, second = make(model(0)), make(model(1))
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    assert np.abs(first(x) - second(x)).max() > 1e-3
    nn.save_safetensors(path, first)
    again = nn.load_safetensors(path, second)
    np.testing.assert_array_equal(again(x), first(x))
    assert again.bound().value == first.bound().value
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", modules.LAYERS)
def test_every_layer_comes_back(name, tmp_path):
    """Scalars, complex weights and all: shapes and numbers are those that were written."""
    path = tmp_path / "layer.safetensors"
    for state in (lambda m: m, nn.freeze):
        layer, other = state(modules.make(name)), state(modules.make(name, seed=1))
        nn.save_safetensors(path, layer)
        again = nn.load_safetensors(path, other)
        pairs = list(zip(jax.tree.leaves(again), jax.tree.leaves(layer), strict=True))
        assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


def test_other_programs_can_read_the_names(tmp_path):
    from safetensors.numpy import load_file

    path = tmp_path / "layer.safetensors"
    layer = nn.freeze(nn.AOLDense(4, 3, rngs=nnx.Rngs(0)))
    nn.save_safetensors(path, layer)
    arrays = load_file(path)
    assert set(arrays) == {"explicit.kernel", "explicit.bias", "explicit.log_q"}
    x = np.ones((1, 4), np.float32)
    plain = x @ arrays["explicit.kernel"] + arrays["explicit.bias"]
    np.testing.assert_allclose(plain, layer(x), atol=1e-6)


class Parts(nnx.Module):
    def __init__(self, **parts):
        for name, part in parts.items():
            setattr(self, name, part)


def same(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def called_value(number):
    """Attributes whose names begin as the step from a variable to what it holds."""
    inner = Parts(values=nnx.Param(number + jnp.arange(3.0)), value=nnx.Param({"value": number}))
    return Parts(
        inner=inner, inners=nnx.Param(-number), value_head=Parts(value_x=nnx.Param(number))
    )


def test_attributes_may_be_called_value(tmp_path):
    """`inner.values` was called `inners`, as another array, and one of the two was not written."""
    from safetensors.numpy import load_file

    path, first, second = tmp_path / "model.safetensors", *map(called_value, jnp.arange(1.0, 3.0))
    nn.save_safetensors(path, first)
    names = {"inner.values", "inner.value.value", "inners", "value_head.value_x"}
    assert set(load_file(path)) == names
    assert same(nn.load_safetensors(path, second), first) and not same(second, first)


def test_names_that_two_arrays_have_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    meeting = Parts(a=nnx.Param({"b.c": jnp.ones(2), "b": {"c": jnp.zeros(2)}}))
    with pytest.raises(ValueError, match="two arrays of the name 'a.b.c'"):
        nn.save_safetensors(path, meeting)
    assert not list(tmp_path.iterdir())


def test_files_of_the_first_version_load(tmp_path):
    """Its names are without `.value` wherever that stood."""
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    first, second = (
        Parts(trunk=Parts(value_head=nnx.Param(x)), plain=nnx.Param(-x)) for x in np.eye(2)
    )
    save_file({"trunk_head": np.eye(2)[0], "plain": -np.eye(2)[0]}, path)
    assert same(nn.load_safetensors(path, second), first)
    with pytest.raises(ValueError, match="does not fit the module"):
        nn.load_safetensors(path, Parts(trunk=Parts(value_heap=nnx.Param(jnp.ones(2)))))


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "layer.safetensors"
    nn.save_safetensors(path, nn.SLLDense(4, 3, rngs=nnx.Rngs(0)))
    for like, word in (
        (nn.SLLDense(4, 5, rngs=nnx.Rngs(0)), r"float32\[4,3\] at 'free.kernel'.*float32\[4,5\]"),
        (nn.CPLDense(4, 3, rngs=nnx.Rngs(0)), "at 'free.log_q', where the module has nothing"),
        (nn.freeze(nn.SLLDense(4, 3, rngs=nnx.Rngs(0))), "nothing at 'explicit"),
    ):
        with pytest.raises(ValueError, match=word):
            nn.load_safetensors(path, like)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="no safetensors file"):
        nn.load_safetensors(damaged, nn.SLLDense(4, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(FileNotFoundError):
        nn.load_safetensors(tmp_path / "none", nn.SLLDense(4, 3, rngs=nnx.Rngs(0)))


def test_an_exported_frozen_network_is_the_same_function_for_every_batch_size():
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    from jax import export

    frozen = nn.freeze(model(0))
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.float32)
    data = export.export(jax.jit(lambda x: frozen(x)), platforms=("cpu", "tpu", "cuda"))(shape)
    again = export.deserialize(data.serialize())
    for size in (1, 5):
        x = jax.random.uniform(jax.random.key(size), (size, 8, 8, 1))
        np.testing.assert_allclose(again.call(x), frozen(x), atol=1e-6)


def test_a_module_whose_arrays_have_no_numbers_is_read_into(tmp_path):
    """`nnx.eval_shape` spares the initialization."""
    path = tmp_path / "layer.safetensors"
    layer = nn.SLLDense(4, 3, rngs=nnx.Rngs(0))
    nn.save_safetensors(path, layer)
    like = nnx.eval_shape(lambda: nn.SLLDense(4, 3, rngs=nnx.Rngs(1)))
    found = nn.load_safetensors(path, like)
    np.testing.assert_array_equal(found(jnp.ones(4)), layer(jnp.ones(4)))
    wide = nnx.eval_shape(lambda: nn.SLLDense(5, 3, rngs=nnx.Rngs(1)))
    with pytest.raises(
        ValueError, match=r"holds float32\[3\] at .* where the module has|float32\[5,3\]"
    ):
        nn.load_safetensors(path, wide)


def test_a_layer_at_two_places_is_not_written_twice(tmp_path):
    class Tied(nnx.Module):
        def __init__(self):
            self.a = self.b = nn.SLLDense(4, 3, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match="module has the same SLLDense at .a and .b"):
        nn.save_safetensors(tmp_path / "layer.safetensors", Tied())
    assert not list(tmp_path.iterdir())
