"""Checkpoints with the published names and shapes, against the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lipjax import margin, nn
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
    if f"{last}.weight" not in state:  # PoolingLinear with "trunc"
        return x[:, :CLASSES]
    vectors = np.float64(state[f"{last}.weight"])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return x @ vectors.T + state[f"{last}.bias"]


def conv_norm(kernel):
    """The bound for every size, which stands where the published code has an estimate from below."""
    return float(conv_gram_iteration(kernel.transpose(2, 3, 1, 0), padding="any"))


@pytest.mark.few(1)
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


@pytest.mark.slow
def test_cpl_is_the_published_function_with_a_bound_in_place_of_the_estimate():
    state = cpl_state()
    x = RNG.random((3, SIZE, SIZE, 3)).astype(np.float32)
    model = pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))
    expected = published(state, x.transpose(0, 3, 1, 2), "cpl")
    np.testing.assert_allclose(model(x), expected, atol=2e-3)
    assert float(nn.freeze(model).feature_bound().value) <= 1 + 1e-5


def truncated_state():
    """Without `--lln` the published last layer has no arrays."""
    return {k: v for k, v in cpl_state().items() if not k.startswith("last_last")}


@pytest.mark.parametrize("dense", [True, False])
def test_cpl_without_a_last_layer_takes_the_first_features_in_the_published_order(dense):
    state = truncated_state()
    if not dense:
        state = {k: v for k, v in state.items() if not k.startswith("layers_linear")}
    x = RNG.random((3, SIZE, SIZE, 3)).astype(np.float32)
    options = dict(image_shape=(SIZE, SIZE, 3), num_classes=CLASSES)
    model = pytorch.from_state_dict(state, **options)
    expected = published(state, x.transpose(0, 3, 1, 2), "cpl")
    assert expected.shape == (3, CLASSES) and np.abs(expected).max() > 0.2
    np.testing.assert_allclose(model(x), expected, atol=2e-3)
    assert np.abs(model.features(x)[:, :CLASSES] - expected).max() > 0.05  # in the order here
    prefixed = {f"module.model.{name}": array for name, array in state.items()}
    np.testing.assert_array_equal(pytorch.from_state_dict(prefixed, **options)(x), model(x))


def test_a_projection_is_certified_with_the_square_root_of_2():
    state, options = truncated_state(), dict(image_shape=(SIZE, SIZE, 3), num_classes=CLASSES)
    model = nn.freeze(pytorch.from_state_dict(state, **options))
    features, logits = model.feature_bound(), model.bound()
    assert logits.value == features.value <= 1 + 1e-5 and logits.kind == "upper"
    vectors = np.asarray(model.class_vectors())
    np.testing.assert_array_equal(vectors.T @ vectors, np.eye(CLASSES))
    x = RNG.random((4, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(model(x), model.features(x) @ vectors, atol=1e-6)
    for output in model(x):
        pairwise = margin.certify(output, lipschitz=features, head=vectors)
        plain = margin.certify(output, lipschitz=logits)
        np.testing.assert_allclose(pairwise.radius, plain.radius, rtol=1e-5)
        top = np.sort(np.float64(output))[::-1]
        exact = (top[0] - top[1]) / np.sqrt(2)
        assert pairwise.radius <= exact and plain.radius <= exact
        np.testing.assert_allclose(plain.radius, exact, rtol=1e-4)


@pytest.mark.parametrize(
    "options,word",
    [
        (dict(num_classes=17), "head is 'projection' and num_classes is 17"),
        (dict(num_classes=0), "num_classes is 0"),
        (dict(image_shape=(16, 16, 3)), "image_shape is .* takes 16"),
    ],
)
def test_a_projection_that_does_not_fit_is_named(options, word):
    with pytest.raises(ValueError, match=word):
        pytorch.from_state_dict(truncated_state(), **dict(image_shape=(SIZE, SIZE, 3)) | options)


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


@pytest.mark.every
@pytest.mark.parametrize(
    "change,word",
    [
        (lambda s: (s.pop("7.weight"), s.pop("7.bias")), "no normalized last layer"),
        (lambda s: s.pop("7.weight"), "of layer 7 only"),
        (
            lambda s: s.update({"2.kernel": normal(HIDDEN + 1, WIDTH, 3, 3)}),
            "kernel of convolution 1",
        ),
        (lambda s: s.update({"conv1.gamma": normal(3)}), "the name 'conv1.gamma'"),
        (lambda s: s.update({"5.weight": normal(INNER)}), "'weight' has shape"),
        (lambda s: s.pop("2.kernel"), r"of layer 2 only \['bias', 'q'\]"),
        (lambda s: s.pop("6.q"), "once, at the end.*has a 'q' too"),
        (
            lambda s: s.update({"5.weight": s["5.weight"][:, :-1]}),
            "dense layer whose 'weight' has shape",
        ),
        (lambda s: s.update({"5.bias": s["5.bias"] * np.nan}), "'5.bias' with NaN"),
        (
            lambda s: s.update(
                {f"{i}.kernel": s[f"{i}.kernel"].transpose(2, 3, 1, 0) for i in (1, 2)}
            ),
            "with a square window",
        ),
        (lambda s: s.pop("1.bias"), "of layer 1 only"),
        (lambda s: s.pop("7.bias"), "of layer 7 only"),
        (lambda s: s.update({f"9.{k}": s[f"6.{k}"] for k in ("weight", "bias", "q")}), "gap|once"),
        (
            lambda s: s.update({"1.bias": np.full(HIDDEN, 1e300)}),
            "'1.bias' with NaN",
        ),
        (lambda s: s.update({"1.bias": np.array(["a"] * HIDDEN)}), "'1.bias' with NaN.*not hold"),
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


@pytest.mark.every
@pytest.mark.parametrize(
    "change,word",
    [
        (lambda s: s.pop("stable_block.0.bias"), "stable_block, layer 0, only .'kernel'"),
        (lambda s: s.pop("layers_linear.2.weights"), "layers_linear, layer 2, only .'bias'"),
        (lambda s: s.pop("last_last.bias"), "last_last, layer 0, only .'weight'"),
        (
            lambda s: s.update({k.replace(".1.", ".3."): s[k] for k in list(s) if ".1." in k}),
            "with a gap",
        ),
    ],
)
def test_what_cpl_lacks_is_named(change, word):
    state = {k: v for k, v in cpl_state().items() if not k.startswith("base")}
    change(state)
    with pytest.raises(ValueError, match=word):
        pytorch.from_state_dict(state, image_shape=(SIZE, SIZE, 3))


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


STUDY = dict(width=4, blocks=2, depth=2, size=8, classes=3)


def study_state(layer, prefix=""):
    """The names and shapes that the study's code writes for such a network."""
    width, state = STUDY["width"], {}

    def add(name, channels, window):
        state[f"{name}.bias"] = normal(channels)
        shape = (channels, channels, window, window)
        if layer == "aol":
            state[f"{name}.parametrizations.weight.original"] = normal(*shape)
        else:
            state[f"{name}.kernel"] = normal(*shape)
        if layer == "sll":
            state[f"{name}.q"] = normal(channels)
        if layer == "cpl":
            state[f"{name}.u"] = normal(1, channels, 4, 4)

    add("FirstConv", width, 1)
    for i in range(STUDY["blocks"]):
        for j in range(STUDY["depth"]):
            window = 1 if i == STUDY["blocks"] - 1 else 3
            add(f"Block{i + 1}.{2 * j}", width * 2**i, window)
    add("ClassificationHead.0", width * 2 ** STUDY["blocks"], 1)
    return {prefix + name: array for name, array in state.items()}


def study_layer(state, name, x, layer):
    """One convolution of the study's code, channels first."""
    bias = jnp.asarray(state[f"{name}.bias"]).reshape(1, -1, 1, 1)
    if layer == "aol":
        weight = state[f"{name}.parametrizations.weight.original"]
        pad = weight.shape[-1] // 2
        turned = jnp.asarray(weight.transpose(1, 0, 2, 3))
        full = [(2 * pad, 2 * pad)] * 2
        numbers = ("NCHW", "OIHW", "NCHW")
        gram = lax.conv_general_dilated(
            turned, turned, (1, 1), full, dimension_numbers=numbers, precision="highest"
        )
        sums = jnp.abs(gram).sum((1, 2, 3)).reshape(1, -1, 1, 1)
        x = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="wrap")
        weight = weight / jnp.sqrt(sums + 1e-6)
        return bias + lax.conv_general_dilated(
            x, weight, (1, 1), "VALID", dimension_numbers=numbers, precision="highest"
        )
    kernel = jnp.asarray(state[f"{name}.kernel"])
    pad = [(kernel.shape[-1] // 2,) * 2] * 2
    numbers = ("NCHW", "OIHW", "NCHW")
    options = dict(dimension_numbers=numbers, precision="highest")
    hidden = jnp.maximum(lax.conv_general_dilated(x, kernel, (1, 1), pad, **options) + bias, 0)
    if layer == "sll":
        full = [(kernel.shape[-1] - 1,) * 2] * 2
        gram = lax.conv_general_dilated(kernel, kernel, (1, 1), full, **options)
        q = jnp.abs(state[f"{name}.q"]) + 1e-6
        step = 2 / ((jnp.abs(gram) * q.reshape(1, -1, 1, 1)).sum((1, 2, 3)) / q + 1e-6)
    else:
        step = jnp.full(len(kernel), 2 / conv_norm(np.asarray(kernel)) ** 2)
    back = jnp.flip(kernel.swapaxes(0, 1), (2, 3))
    hidden = hidden * step.reshape(1, -1, 1, 1).astype(jnp.float32)
    return x - lax.conv_general_dilated(hidden, back, (1, 1), pad, **options)


def study_forward(state, x, layer):
    """The study's network, channels first."""

    def max_min(x):
        pairs = x.reshape(len(x), -1, 2, *x.shape[2:])
        return jnp.concatenate(
            [pairs.max(2, keepdims=True), pairs.min(2, keepdims=True)], 2
        ).reshape(x.shape)

    x = jnp.pad(x, ((0, 0), (0, STUDY["width"] - x.shape[1]), (0, 0), (0, 0)))
    x = max_min(study_layer(state, "FirstConv", x, layer))
    for i in range(STUDY["blocks"]):
        for j in range(STUDY["depth"]):
            x = max_min(study_layer(state, f"Block{i + 1}.{2 * j}", x, layer))
        x = x[:, : x.shape[1] // 2]
        n, c, h, w = x.shape  # PixelUnshuffle
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 5, 2, 4)
        x = x.reshape(n, 4 * c, h // 2, w // 2)
    x = x.max((2, 3), keepdims=True)
    return study_layer(state, "ClassificationHead.0", x, layer)[:, : STUDY["classes"], 0, 0]


@pytest.mark.few(1)
@pytest.mark.parametrize("layer,prefix", [("aol", ""), ("sll", "model."), ("cpl", "")])
def test_networks_of_the_study_are_the_published_functions(layer, prefix):
    state = study_state(layer, prefix)
    size = STUDY["size"]
    x = RNG.random((3, size, size, 3)).astype(np.float32)
    model = pytorch.from_state_dict(state, image_shape=(size, size, 3), num_classes=3)
    assert (model.config.layer, model.config.width, model.config.block_depth) == (layer, 4, 2)
    plain = {k[len(prefix) :]: v for k, v in state.items()}
    expected = study_forward(plain, jnp.asarray(x.transpose(0, 3, 1, 2)), layer)
    assert np.abs(expected).max() > 0.2
    np.testing.assert_allclose(model(x), expected, atol=5e-3 if layer == "cpl" else 2e-4)
    assert float(nn.freeze(model).bound().value) <= 1 + 1e-5


@pytest.mark.every
@pytest.mark.parametrize(
    "change,word",
    [
        (lambda s: s.update({"Block3.0.bias": normal(3)}), "2 layers in Block1 and 1 in Block3"),
        (
            lambda s: s.update({"Block2.6.bias": normal(8), "Block2.6.kernel": normal(8, 8, 1, 1)}),
            "Block2 numbered .0, 2, 6.",
        ),
        (lambda s: s.pop("Block2.2.bias"), "lacks 'Block2.2.bias'"),
        (lambda s: s.update({"Block9.0.bias": normal(3)}), "the blocks .1, 2, 9."),
        (lambda s: s.update({"Stem.bias": normal(3)}), "the name 'Stem.bias'"),
        (lambda s: s.update({"Block1.2.kernel": normal(4, 4, 5, 5)}), "kernel of Block1.0 and on"),
        (lambda s: s.pop("FirstConv.kernel"), "only the study's networks of AOL"),
        (lambda s: s.pop("ClassificationHead.0.kernel"), "lacks 'ClassificationHead.0.kernel'"),
    ],
)
def test_states_that_are_no_network_of_the_study_are_named(change, word):
    state = study_state("cpl")
    change(state)
    with pytest.raises(ValueError, match=word):
        pytorch.from_state_dict(state, image_shape=(8, 8, 3))
    with pytest.raises(ValueError, match="multiples of 4"):
        pytorch.from_state_dict(study_state("cpl"), image_shape=(6, 6, 3))
