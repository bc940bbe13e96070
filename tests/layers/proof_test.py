"""The figures of the proof: right for every layer, and off for every way to be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import nn
from lipjax.layers import activations, aol, block, cayley, forms, head, proof, sandwich, skew, sll
from lipjax.layers._convolution import add_bias, convolve
from tests import oracles
from tests.nn import modules

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def made(module, kind, *sizes, **options):
    params = getattr(module, f"init_{kind}")(KEY, *sizes)
    params = params._replace(bias=jnp.linspace(-0.5, 0.5, params.bias.shape[0]))
    return getattr(module, f"constrain_{kind}")(params, **options)


ROWS = {
    "sll dense": (sll.apply_dense, made(sll, "dense", 5, 4), (5,), {}),
    "sll conv": (sll.apply_conv, made(sll, "conv", 2, 3), (3, 4, 2), {}),
    "sll circular": (sll.apply_conv, made(sll, "conv", 2, 3), (3, 4, 2), {"padding": "circular"}),
    "sll tanh": (sll.apply_dense, made(sll, "dense", 5, 4), (5,), {"activation": "tanh"}),
    "aol conv": (aol.apply_conv, made(aol, "conv", 2, 3), (3, 4, 2), {}),
    "cayley dense": (cayley.apply_dense, made(cayley, "dense", 3, 5), (3,), {}),
    "cayley conv": (
        cayley.apply_conv,
        made(cayley, "conv", 2, 3, input_size=(3, 4)),
        (3, 4, 2),
        {},
    ),
    "aol strided": (aol.apply_conv, made(aol, "conv", 2, 3), (4, 6, 2), {"strides": 2}),
    "block conv": (block.apply_conv, made(block, "conv", 2, 3), (4, 4, 2), {}),
    "block strided": (
        block.apply_conv,
        block.constrain_conv(block.init_conv(KEY, 2, 8, kernel_size=4, strides=2)),
        (4, 6, 2),
        {"padding": "circular"},
    ),
    "skew order 8": (skew.apply_conv, made(skew, "conv", 2, 2), (3, 3, 2), {"order": 8}),
    "skew conv": (skew.apply_conv, made(skew, "conv", 2, 2), (3, 3, 2), {}),
    "sandwich dense": (sandwich.apply_dense, made(sandwich, "dense", 4, 3), (4,), {}),
    "sandwich conv": (
        sandwich.apply_conv,
        made(sandwich, "conv", 2, 3, input_size=(3, 4)),
        (3, 4, 2),
        {},
    ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ROWS)
def test_every_layer_is_proved(name):
    apply, weights, shape, options = ROWS[name]
    found = proof.prove(KEY, apply, weights, shape, num_points=3, num_steps=5, **options)
    assert -1e-5 <= found.smallest_eigenvalue <= 1
    assert 0.3 < found.jacobian_norm <= 1 + 1e-5
    assert found.mismatch <= 1e-9 and found.adjoint_error <= 1e-9


def refused(apply, weights, shape, **options):
    with pytest.raises(ValueError, match="do not make a 1-Lipschitz layer") as error:
        proof.prove(KEY, apply, weights, shape, num_points=3, num_steps=5, **options)
    return str(error.value)


def test_a_step_that_is_too_long_fails_the_condition():
    weights = ROWS["sll dense"][1]
    message = refused(sll.apply_dense, weights._replace(step=3 * weights.step), (5,))
    assert "smallest eigenvalue of the condition -" in message


def test_a_kernel_that_is_too_large_fails_the_condition():
    weights = ROWS["aol conv"][1]
    refused(aol.apply_conv, weights._replace(kernel=1.5 * weights.kernel), (3, 4, 2))


def test_a_forbidden_activation_fails_by_its_jacobian():
    cheat = activations.Activation("cheat", jnp.abs, (0.0, 1.0))
    matrix = np.linalg.qr(RNG.normal(size=(5, 4)))[0].astype(np.float32)
    weights = forms.as_residual(forms.linear(jnp.asarray(matrix), jnp.zeros(4)))
    message = refused(forms.residual_dense, weights, (5,), activation=cheat)
    assert float(message.split("Jacobian norm ")[1].split(",")[0]) > 1.5


def test_a_backward_map_that_is_not_the_adjoint_is_found():
    """The flipped kernel instead of the adjoint: right for odd windows, wrong for even ones."""

    def flipped(weights, x, activation="relu"):
        s = activations.slope_restricted(activation)
        hidden = s(add_bias(convolve(x, weights.kernel), weights.bias))
        back = jnp.swapaxes(weights.kernel[::-1, ::-1], -1, -2)
        return x - convolve(hidden * jnp.broadcast_to(weights.step, hidden.shape), back)

    params = sll.init_conv(KEY, 2, 3, kernel_size=2)
    message = refused(flipped, sll.constrain_conv(params), (3, 4, 2), tol=1e-3)
    assert "adjoint error 0." in message
    odd = sll.constrain_conv(sll.init_conv(KEY, 2, 3, kernel_size=3))
    proof.prove(KEY, flipped, odd, (3, 4, 2), num_points=2, num_steps=2)


def test_code_that_computes_something_else_is_found():
    weights = ROWS["cayley dense"][1]
    message = refused(lambda weights, x: 0.5 * cayley.apply_dense(weights, x), weights, (3,))
    assert "mismatch with its matrices 0." in message


def test_an_order_that_expands_is_found():
    """A rotation of every pixel by one radian, whose series of five terms is longer than 1."""
    kernel = np.zeros((3, 3, 2, 2), np.float32)
    kernel[1, 1] = [[0, 1], [-1, 0]]
    weights = skew.constrain_conv(skew.Params(kernel, jnp.zeros(2)))
    refused(skew.apply_conv, weights, (3, 3, 2), order=5)


@pytest.mark.parametrize(
    "weights,word",
    [
        (head.constrain_dense(head.init_dense(KEY, 4, 3)), "weights is a Head"),
        (nn.SLLDense(4, 3, rngs=nnx.Rngs(0)), "weights is a SLLDense"),
    ],
)
def test_what_no_layer_makes_is_named(weights, word):
    with pytest.raises(ValueError, match=word):
        proof.prove(KEY, sll.apply_dense, weights, (4,))


def biased(layer):
    params = layer.free.get_value()
    layer.free = nnx.Param(params._replace(bias=jnp.linspace(-0.5, 0.5, params.bias.shape[0])))
    return layer


PROVABLE = [*modules.LINEAR, *modules.SANDWICH, *modules.RESIDUAL]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", PROVABLE)
@pytest.mark.parametrize("form", [lambda layer: layer, nn.Residual], ids=["plain", "residual"])
def test_modules_are_proved_by_themselves(name, form):
    if form is nn.Residual and name not in modules.LINEAR:
        pytest.skip("only linear layers are put into the form")
    layer = form(biased(modules.make(name)))
    shape = (2, 3, 3) if name.endswith("Conv") else (6,)
    if name.endswith("Conv") and hasattr(getattr(layer, "layer", layer), "input_size"):
        shape = modules.sample(name)
    found = proof.prove(KEY, layer, shape=shape, num_points=2, num_steps=3)
    assert found.smallest_eigenvalue >= -1e-5 and found.mismatch <= 1e-9


MIXED = {
    "linear": lambda: biased(modules.make("CayleyDense")),
    "linear conv": lambda: biased(modules.make("AOLConv")),
    "frequencies conv": lambda: biased(modules.make("CayleyConv")),
    "inside": lambda: biased(modules.make("SLLDense")),
    "inside conv": lambda: biased(modules.make("CPLConv")),
    "tanh": lambda: biased(nn.SLLDense(6, 8, activation="tanh", rngs=nnx.Rngs(0))),
    "sandwich": lambda: biased(modules.make("SandwichDense")),
    "residual": lambda: nn.Residual(biased(nn.CayleyDense(6, 4, rngs=nnx.Rngs(0)))),
    "mix": lambda: mixed(biased(modules.make("CayleyDense")), 0.7),
}


def mixed(layer, logit, kind=nn.ConvexMix):
    mix = kind(layer)
    mix.free = nnx.Param((mix.free.get_value()[0], jnp.float32(logit)))
    return mix


@pytest.mark.few(1)
@pytest.mark.parametrize("name", MIXED)
def test_convex_mixes_are_proved_by_their_own_matrices(name):
    shape = (2, 3, 3) if name.endswith("conv") else (6,)
    if name == "frequencies conv":
        shape = modules.sample("CayleyConv")
    layer = mixed(MIXED[name](), -1.0)
    found = proof.prove(KEY, layer, shape=shape, num_points=2, num_steps=3)
    assert found.smallest_eigenvalue >= -1e-5
    assert found.mismatch <= 1e-9 and found.adjoint_error <= 1e-9


class Extrapolation(nn.ConvexMix):
    """With a gate of 1.5, and matrices that say so."""

    def gate(self, weights):
        return 1.5 + 0 * weights[1]

    def apply(self, weights, x):
        return 1.5 * x - 0.5 * self.layer.apply(weights[0], x)


class AnotherShare(nn.ConvexMix):
    """Mixes with another gate than its matrices say."""

    def apply(self, weights, x):
        return 0.25 * x + 0.75 * self.layer.apply(weights[0], x)


@pytest.mark.parametrize("name", ["linear", "inside", "inside conv"])
def test_mixes_with_a_gate_outside_of_0_and_1_are_refused(name):
    layer = mixed(MIXED[name](), 0.0, Extrapolation)
    shape = (2, 3, 3) if name.endswith("conv") else (6,)
    message = refused(layer, None, shape)
    assert "smallest eigenvalue of the condition -" in message
    assert float(message.split("its matrices ")[1].split(",")[0]) <= 1e-9
    if name == "linear":
        assert float(message.split("Jacobian norm ")[1].split(",")[0]) > 1.1


def test_mixes_with_another_gate_than_their_matrices_are_refused():
    message = refused(mixed(MIXED["linear"](), 0.0, AnotherShare), None, (6,))
    assert float(message.split("its matrices ")[1].split(",")[0]) > 0.1


@pytest.mark.parametrize("name,change", [("linear", "kernel"), ("inside", "step")])
def test_a_mix_of_a_layer_that_expands_is_refused_where_the_mix_does(name, change):
    mix = nn.freeze(mixed(MIXED[name](), -1.0))
    inner, logit = mix.weights()
    longer = inner._replace(**{change: 3 * getattr(inner, change)})
    mix.explicit = type(mix.explicit)((longer, logit))
    message = refused(mix, None, (6,))
    assert float(message.split("Jacobian norm ")[1].split(",")[0]) > 1.1


def test_a_mix_that_takes_back_what_its_layer_expands_is_proved():
    """`0.5 x - 0.5 * 1.5 x`."""
    mix = nn.freeze(nn.ConvexMix(nn.CayleyDense(3, 3, rngs=nnx.Rngs(0))))
    turned = mix.weights()[0]._replace(kernel=-1.5 * jnp.eye(3))
    mix.explicit = type(mix.explicit)((turned, jnp.float32(0)))
    found = proof.prove(KEY, mix, shape=(3,), num_points=2, num_steps=2)
    np.testing.assert_allclose(found.jacobian_norm, 0.25, rtol=1e-6)
    assert mix.bound().value >= 1.5  # the bound knows only the norm of the layer


def test_the_backward_map_of_a_mixed_layer_is_tried_too():
    class Flipped(nn.SLLConv):
        def apply(self, weights, x):
            s = activations.slope_restricted(self.activation)
            hidden = s(add_bias(convolve(x, weights.kernel), weights.bias))
            back = jnp.swapaxes(weights.kernel[::-1, ::-1], -1, -2)
            return x - convolve(hidden * jnp.broadcast_to(weights.step, hidden.shape), back)

    layer = Flipped(2, 3, kernel_size=2, rngs=nnx.Rngs(0))
    assert "adjoint error 0." in refused(nn.ConvexMix(layer), None, (3, 4, 2), tol=1e-3)


def test_a_mix_with_no_logit_is_refused():
    refused(mixed(MIXED["linear"](), np.nan), None, (6,))


def test_modules_that_are_wrong_or_several_are_refused():
    layer = nn.freeze(nn.Residual(nn.CayleyDense(4, 4, rngs=nnx.Rngs(0))))
    larger = layer.weights()
    layer.explicit = type(layer.explicit)(larger._replace(kernel=1.2 * larger.kernel))
    with pytest.raises(ValueError, match="do not make a 1-Lipschitz layer"):
        proof.prove(KEY, layer, shape=(4,), num_points=2, num_steps=2)
    chain = nn.Chain(nn.CayleyDense(4, 4, rngs=nnx.Rngs(0)), "abs")
    dense = nn.Stack(lambda rngs: nn.CayleyDense(4, 4, rngs=rngs), 2, rngs=nnx.Rngs(0))
    narrower = nn.ConvexMix(nn.CayleyDense(4, 3, rngs=nnx.Rngs(0)))
    images = nn.Stack(lambda rngs: nn.AOLConv(2, 2, rngs=rngs), 2, rngs=nnx.Rngs(0))
    for call, word in (
        (lambda: proof.prove(KEY, chain, shape=(4,)), "made of several"),
        (lambda: proof.prove(KEY, dense, shape=(4,)), "Stack is .* made of several"),
        (lambda: proof.prove(KEY, images, shape=(3, 3, 2)), "Stack is .* made of several"),
        (lambda: proof.prove(KEY, nn.ConvexMix(chain), shape=(4,)), "Chain is .* several"),
        (lambda: proof.prove(KEY, narrower, shape=(4,)), "from 4 entries to 3"),
        (lambda: proof.prove(KEY, lambda x: x, shape=(4,)), "weights is None"),
        (lambda: proof.prove(KEY, layer, shape=(4,), order=3), "order is given for a Residual"),
        (lambda: proof.prove(KEY, layer, shape=4), "shape is 4"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


@pytest.mark.parametrize("name,shape", [("sll dense", (4,)), ("aol conv", (3, 4, 3))])
def test_a_shape_of_another_size_is_named(name, shape):
    with pytest.raises(ValueError, match="shape is .*; the layer is for"):
        proof.prove(KEY, *ROWS[name][:2], shape)


def test_strides_of_layers_that_have_none_are_named():
    with pytest.raises(ValueError, match="strides is .2, 2. for a Residual"):
        proof.prove(KEY, *ROWS["sll conv"][:3], strides=2)


@pytest.mark.slow
def test_orthogonality_is_what_the_almost_orthogonal_layer_keeps():
    for shape in ((7, 4), (4, 7)):
        kernel = jnp.asarray(RNG.normal(size=shape), jnp.float32)
        weights = aol.constrain_dense(aol.Params(kernel, jnp.zeros(shape[1])))
        kept = np.mean(oracles.singular_values(weights.kernel) ** 2)
        np.testing.assert_allclose(np.mean(proof.orthogonality(kernel)), kept, rtol=1e-4)
    for shape in (
        (3, 3, 4, 2),
        (2, 5, 3),
    ):  # a convolution: over all frequencies of a circular image
        kernel = jnp.asarray(RNG.normal(size=shape), jnp.float32)
        if shape[-2] < shape[-1]:
            kernel = jnp.swapaxes(kernel, -1, -2)
        weights = aol.constrain_conv(aol.Params(kernel, jnp.zeros(kernel.shape[-1])))
        size = (7,) * (kernel.ndim - 2)
        symbol = np.fft.fftn(np.asarray(weights.kernel), size, axes=range(kernel.ndim - 2))
        kept = np.mean(np.linalg.svd(symbol, compute_uv=False) ** 2)
        np.testing.assert_allclose(np.mean(proof.orthogonality(kernel)), kept, rtol=1e-4)
    q = np.linalg.qr(RNG.normal(size=(6, 3)))[0].astype(np.float32)
    np.testing.assert_allclose(proof.orthogonality(q * np.float32([1, 5, 1e-3])), 1, atol=1e-3)
    assert not proof.orthogonality(jnp.zeros((3, 2))).any()
