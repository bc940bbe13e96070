"""Checkpoints with the published names and shapes, against the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lipjax import nn
from lipjax.models import pytorch
from lipjax.spectral import conv_gram_iteration

RNG = np.random.default_rng(0)
WIDTH, HIDDEN, INNER, CLASSES, SIZE = 4, 3, 16, 5, 8
FEATURES = WIDTH * (SIZE // 4) ** 2


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def sll_state(prefix=""):
    """Two convolutions, two dense layers, numbered as in the published Sequential."""
    state = {}
    for i in (1, 2):
        state |= {f"{i}.kernel": normal(HIDDEN, WIDTH, 3, 3), f"{i}.q": normal(HIDDEN)}
        state |= {f"{i}.bias": normal(1, HIDDEN, 1, 1)}
    for i in (5, 6):
        state |= {f"{i}.weight": normal(INNER, FEATURES), f"{i}.bias": normal(1, INNER)}
        state |= {f"{i}.q": normal(INNER)}
    state |= {"7.weight": normal(CLASSES, FEATURES), "7.bias": normal(CLASSES)}
    return {prefix + name: array for name, array in state.items()}


def cpl_state():
    state = {}
    for i in (0, 1):
        state |= {f"stable_block.{i}.kernel": normal(HIDDEN, WIDTH, 3, 3)}
        state |= {f"stable_block.{i}.bias": normal(HIDDEN), f"stable_block.{i}.pm.u": normal(3)}
        state |= {f"stable_block.{i}.eval_sv_max": normal(1)}
    for i in (1, 2):
        state |= {f"layers_linear.{i}.weights": normal(INNER, FEATURES)}
        state |= {f"layers_linear.{i}.bias": normal(INNER), f"layers_linear.{i}.alpha": normal(1)}
    state |= {"last_last.weight": normal(CLASSES, FEATURES), "last_last.bias": normal(CLASSES)}
    twice = {f"base.1.{k[13:]}": v for k, v in state.items() if k.startswith("stable_block")}
    return state | twice


def nchw(x, kernel, transpose=False):
    """The published convolution, padded by one, or its transpose, channels first."""
    kernel = jnp.asarray(kernel)
    if transpose:
        kernel = jnp.flip(kernel.swapaxes(0, 1), (2, 3))
    numbers = ("NCHW", "OIHW", "NCHW")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers, precision="highest"
    )


def published(state, x, layer):
    """The published forward pass in float32, channels first."""
    convs = [k[: -len(".kernel")] for k in state if k.endswith(".kernel") and "base" not in k]
    ends = ".weights" if layer == "cpl" else ".q"
    denses = [k[: -len(ends)] for k in state if k.endswith(ends) and state[k].ndim < 3]
    denses = [k for k in denses if f"{k}.weight" in state or f"{k}.weights" in state]
    x = np.concatenate([x, np.zeros((len(x), WIDTH - 3, SIZE, SIZE), np.float32)], 1)
    for name in convs:
        kernel, bias = state[f"{name}.kernel"], state[f"{name}.bias"].reshape(1, -1, 1, 1)
        hidden = jnp.maximum(nchw(x, kernel) + jnp.asarray(bias), 0)
        if layer == "sll":
            gram = lax.conv_general_dilated(
                kernel, kernel, (1, 1), [(2, 2), (2, 2)], dimension_numbers=("NCHW", "OIHW", "NCHW")
            )
            step = 2 / np.abs(gram).sum((1, 2, 3))
        else:
            step = np.full(HIDDEN, 2 / conv_norm(kernel) ** 2)
        x = x - nchw(hidden * jnp.asarray(step.reshape(1, -1, 1, 1), jnp.float32), kernel, True)
    x = np.asarray(x).reshape(len(x), WIDTH, SIZE // 4, 4, SIZE // 4, 4).sum((3, 5)) / 4
    x = np.float64(x.reshape(len(x), -1))
    for name in denses:
        weight = np.float64(state[f"{name}.weight" + ("s" if layer == "cpl" else "")])
        hidden = np.maximum(x @ weight.T + state[f"{name}.bias"].reshape(-1), 0)
        if layer == "sll":
            q = np.exp(np.float64(state[f"{name}.q"]))
            step = 2 / np.abs(weight @ weight.T * q / q[:, None]).sum(1)
        else:
            step = 2 / np.linalg.norm(weight, 2) ** 2
        x = x - (step * hidden) @ weight
    last = "7" if layer == "sll" else "last_last"
    vectors = np.float64(state[f"{last}.weight"])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return x @ vectors.T + state[f"{last}.bias"]


def conv_norm(kernel):
    """The bound for every size, which stands where the published code has an estimate from below."""
    return float(conv_gram_iteration(kernel.transpose(2, 3, 1, 0), padding="any"))


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.model."])
def test_sll_is_the_published_function(prefix):
    state = sll_state(prefix)
    x = RNG.random((3, SIZE, SIZE, 3)).astype(np.float32)
    model = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    assert (model.config.conv_depth, model.config.dense_depth) == (2, 2)
    plain = {k[len(prefix) :]: v for k, v in state.items()}
    expected = published(plain, x.transpose(0, 3, 1, 2), "sll")
    np.testing.assert_allclose(model(x), expected, atol=2e-4)
    assert float(nn.freeze(model).feature_bound().value) <= 1 + 1e-5


def test_cpl_is_the_published_function_with_a_bound_in_place_of_the_estimate():
    state = cpl_state()
    x = RNG.random((3, SIZE, SIZE, 3)).astype(np.float32)
    model = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    expected = published(state, x.transpose(0, 3, 1, 2), "cpl")
    np.testing.assert_allclose(model(x), expected, atol=2e-3)
    assert float(nn.freeze(model).feature_bound().value) <= 1 + 1e-5


def test_the_mean_is_subtracted():
    state = sll_state()
    x = RNG.random((2, SIZE, SIZE, 3)).astype(np.float32)
    plain = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    shifted = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3), mean=(0.1, 0.2, 0.3))
    moved = x + np.float32([[[[0.1, 0.2, 0.3]]]])
    np.testing.assert_allclose(shifted(moved), plain(x), atol=1e-5)


def test_the_first_release_is_loaded_as_it_should_have_been():
    state = sll_state()
    for name in state:
        if name.endswith(".q"):
            state[name] = np.full_like(
                state[name], 1e-8
            )  # the published layer expands a hundredfold
    model = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3), weights="abs")
    assert float(nn.freeze(model).feature_bound().value) <= 1 + 1e-5


def test_negative_control_features_in_the_other_order_are_another_function():
    state = sll_state()
    x = RNG.random((2, SIZE, SIZE, 3)).astype(np.float32)
    good = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "_channels_last", lambda config: np.arange(config.features))
        wrong = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    assert np.abs(wrong(x) - good(x)).max() > 0.05


@pytest.mark.parametrize(
    "change,word",
    [
        (lambda s: s.pop("7.weight"), "no normalized last layer"),
        (
            lambda s: s.update({"2.kernel": normal(HIDDEN + 1, WIDTH, 3, 3)}),
            "kernel of convolution 1",
        ),
        (lambda s: s.update({"conv1.gamma": normal(3)}), "the name 'conv1.gamma'"),
        (lambda s: s.update({"5.weight": normal(INNER)}), "'weight' has shape"),
        (lambda s: s.clear(), "no layers"),
    ],
)
def test_what_does_not_fit_is_named(change, word):
    state = sll_state()
    change(state)
    with pytest.raises(ValueError, match=word):
        pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    with pytest.raises(ValueError, match="image_shape is"):
        pytorch.from_state_dict(sll_state(), image_shape=(16, 16, 3))


def test_a_state_dict_of_torch_itself():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    modules = torch.nn.ModuleDict()
    state = sll_state()
    for name, array in state.items():
        number, kind = name.split(".")
        if number not in modules:
            modules[number] = torch.nn.Module()
        modules[number].register_parameter(kind, torch.nn.Parameter(torch.from_numpy(array)))
    arrays = {k: v.detach().numpy() for k, v in modules.state_dict().items()}
    x = jax.random.uniform(jax.random.key(0), (2, SIZE, SIZE, 3))
    a, b = (pytorch.from_state_dict(s, image_shape=(SIZE, SIZE, 3)) for s in (arrays, state))
    np.testing.assert_array_equal(a(x), b(x))
