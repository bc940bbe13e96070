"""Functions of other programs, certified by the same call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lipjax.smoothing import gaussian, wrap
from lipjax.smoothing.sampling import sample_counts

W = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
X = jnp.linspace(0.0, 1.0, 6)
OPTIONS = dict(sigma=0.3, num_samples=400, num_classes=3, batch_size=100)


def votes(fn):
    return np.asarray(jax.jit(lambda key: sample_counts(key, fn, X, **OPTIONS))(jax.random.key(0)))


def test_numpy_functions():
    fn = wrap.host(lambda x: x @ W, num_classes=3)
    expected = votes(lambda x: x @ jnp.asarray(W))
    assert np.abs(votes(fn) - expected).sum() <= 2  # ties by rounding
    found = gaussian.certify(expected, votes(fn), sigma=0.3, alpha=0.01)
    assert found.prediction == expected.argmax()


def test_host_functions_under_vmap_and_their_errors():
    fn = wrap.host(lambda x: x @ W, num_classes=3)
    xs = jnp.stack([X, 2 * X])
    batched = jax.vmap(fn)(xs[:, None])
    np.testing.assert_allclose(batched[:, 0], xs @ W, rtol=1e-5)
    wrong = wrap.host(lambda x: x, num_classes=3)
    with pytest.raises(ValueError, match="it must return .5, 3."):
        wrong(jnp.ones((5, 6)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: fn returns .* return .5, 3."):
        jax.block_until_ready(jax.jit(wrong)(jnp.ones((5, 6))))
    with pytest.raises(ValueError, match="num_classes is 1"):
        wrap.host(lambda x: x, num_classes=1)
    with pytest.raises(ValueError, match="fn is array"):
        wrap.host(np.ones(3), num_classes=2)
    for made in (lambda x: (x @ W).astype(np.complex64), lambda x: (x @ W).astype(str)):
        with pytest.raises(ValueError, match="fn returns dtype .*; it must return real logits"):
            wrap.host(made, num_classes=3)(jnp.ones((5, 6)))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, jnp.bfloat16])
def test_real_logits_of_any_type_come_back_as_float32(dtype):
    fn = wrap.host(lambda x: np.round(x @ W).astype(dtype), num_classes=3)
    found = jax.jit(fn)(jnp.ones((5, 6)))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.round(np.ones((5, 6)) @ W))


def test_host_functions_of_several_arrays():
    """Tokens and an image: the same structure in NumPy, of each example alone or of a batch."""
    table = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    seen = []

    def program(x):
        seen.append(jax.tree.map(type, x))
        x["image"][...] *= 2  # its own copy
        return table[x["text"][0]].sum(1) + x["image"] @ W

    fn = wrap.host(program, num_classes=3)
    tokens = jnp.array([[0, 1, 2, 3], [4, 4, 0, 1]], jnp.int32)
    x = {"text": (tokens,), "image": jnp.stack([X, 3 * X])}
    expected = table[np.asarray(tokens)].sum(1) + 2 * np.asarray(x["image"]) @ W
    np.testing.assert_allclose(fn(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(fn)(x), expected, rtol=1e-5)
    single = jax.tree.map(lambda a: a[:, None], x)
    np.testing.assert_allclose(jax.vmap(fn)(single)[:, 0], expected, rtol=1e-5)
    assert all(kinds == {"text": (np.ndarray,), "image": np.ndarray} for kinds in seen)
    image = jnp.stack([X, 3 * X])
    fewer = {"image": 0, "text": None}  # every image against the same tokens
    both = jax.vmap(fn, in_axes=(fewer,))({"text": (tokens,), "image": jnp.stack([image, image])})
    np.testing.assert_allclose(both, np.stack([expected, expected]), rtol=1e-5)
    for bad in ({"text": (tokens[:1],), "image": image}, {"text": (tokens,), "image": 1.0}, {}):
        for run in (fn, jax.jit(fn)):
            with pytest.raises(ValueError, match="x has shapes .* the same first axis"):
                run(bad)


def test_pytorch_functions():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W.T.copy()))
        fn = wrap.host(lambda x: layer(torch.from_numpy(x)).detach().numpy(), num_classes=3)
        assert np.abs(votes(fn) - votes(lambda x: x @ jnp.asarray(W))).sum() <= 2


def test_modules_and_functions_with_parameters():
    expected = votes(lambda x: x @ jnp.asarray(W))
    module = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    module.kernel.set_value(jnp.asarray(W))
    dense = linen.Dense(3)
    params = {"params": {"kernel": jnp.asarray(W), "bias": jnp.zeros(3)}}
    for fn in (module, functools.partial(dense.apply, params)):
        assert np.abs(votes(fn) - expected).sum() <= 2


def test_haiku_functions():
    hk = pytest.importorskip("haiku", reason="Haiku is not installed")
    transformed = hk.transform(lambda x: hk.Linear(3)(x))
    with jax.numpy_rank_promotion("allow"):
        params = transformed.init(jax.random.key(0), jnp.ones((1, 6)))
        params = {"linear": {"w": jnp.asarray(W), "b": jnp.zeros(3)}}
        fn = functools.partial(transformed.apply, params, None)
        assert np.abs(votes(fn) - votes(lambda x: x @ jnp.asarray(W))).sum() <= 2


def test_equinox_functions():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    layer = eqx.nn.Linear(6, 3, use_bias=False, key=jax.random.key(0))
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(W.T))
    assert np.abs(votes(jax.vmap(layer)) - votes(lambda x: x @ jnp.asarray(W))).sum() <= 2


def test_the_denoiser_gets_the_noise_that_there_is():
    """A best linear denoiser in [-1, 1]: with the right deviation its error is smallest."""
    sigma, prior = 0.25, 0.2
    rng = np.random.default_rng(0)
    clean = jnp.asarray(0.5 + prior * rng.normal(size=(5000, 2)), jnp.float32)
    noisy = clean + sigma * jnp.asarray(rng.normal(size=(5000, 2)), jnp.float32)

    def wiener(x, deviation):  # images around 0 with deviation 2 prior there
        return x * (2 * prior) ** 2 / ((2 * prior) ** 2 + deviation**2)

    def error(s):
        fn = wrap.denoised(wiener, lambda x: x, sigma=s)
        return float(jnp.mean((fn(noisy) - clean) ** 2))

    # Negative controls: the deviation of [0, 1] passed on to [-1, 1], and twice too much.
    assert error(sigma) < min(error(sigma / 2), error(2 * sigma))
    np.testing.assert_allclose(error(sigma), prior**2 * sigma**2 / (prior**2 + sigma**2), rtol=0.05)
    with pytest.raises(ValueError, match="each range must increase"):
        wrap.denoised(wiener, lambda x: x, sigma=0.1, low=1.0, high=0.0)


def test_host_functions_inside_of_shard_map_are_refused_not_waited_for():
    """Two callbacks on CPU devices wait for each other for ever, in JAX itself."""
    fn = wrap.host(lambda x: x[:, :2], num_classes=2)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    mapped = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec))
    with pytest.raises(
        ValueError, match="fn is a host function inside of shard_map on 8 CPU devices"
    ):
        mapped(jnp.ones((8, 3)))
    assert jax.jit(fn)(jnp.ones((8, 3))).shape == (8, 2)
    alone = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.jit(jax.shard_map(fn, mesh=alone, in_specs=spec, out_specs=spec))
    assert mapped(jnp.ones((8, 3))).shape == (8, 2)
