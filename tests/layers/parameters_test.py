"""What constraints take: parameters of the layer itself, dense or of a convolution, also as lists."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.layers import (
    aol,
    bjorck,
    block,
    cayley,
    cpl,
    head,
    householder,
    normalized,
    reflector,
    rescaled,
    sandwich,
    skew,
    sll,
    triangular,
)

KEY = jax.random.key(0)
DENSE = [
    aol, bjorck, cayley, cpl, head, householder, normalized, reflector, rescaled, sandwich, skew, sll,
    triangular,
]  # fmt: skip
CONV = [aol, block, cayley, cpl, normalized, reflector, rescaled, sandwich, skew, sll]


def init(module, kind):
    """Parameters of a small layer."""
    make = getattr(module, f"init_{kind}")
    wide = "out_features" in inspect.signature(make).parameters
    return make(KEY, 4, 4) if wide or module in (cpl, head, sll) else make(KEY, 4)


def makers(module, kind):
    """`constrain` and `freeze` of the layer."""
    for verb in ("constrain", "freeze"):
        make = getattr(module, f"{verb}_{kind}")
        sized = "input_size" in inspect.signature(make).parameters and module is not cpl
        yield lambda params, make=make, sized=sized: make(
            params, **({"input_size": 4} if sized else {})
        )


def ids(module):
    return module.__name__.rsplit(".", 1)[-1]


@pytest.mark.parametrize("module", DENSE, ids=ids)
def test_the_kernel_of_a_convolution_is_no_matrix(module):
    """Taken for a batch of matrices it made layers that expand, by 3.5 and more."""
    params = init(module, "dense")
    conv = params._replace(kernel=jnp.ones((3, 3, *params.kernel.shape)))
    for make in makers(module, "dense"):
        with pytest.raises(ValueError, match=r"params.kernel has shape.*use constrain_conv"):
            make(conv)


@pytest.mark.parametrize("module", CONV, ids=ids)
def test_a_matrix_is_no_kernel_of_a_convolution(module):
    params = init(module, "conv")
    dense = params._replace(kernel=params.kernel[0, 0])
    for make in makers(module, "conv"):
        with pytest.raises(ValueError, match=r"params.kernel has shape.*use constrain_dense"):
            make(dense)


@pytest.mark.parametrize("module", DENSE, ids=ids)
def test_lists_of_numbers_are_parameters(module):
    params = init(module, "dense")
    lists = [np.asarray(leaf).tolist() for leaf in params]
    if module is householder:  # no list says that there are four inputs of nothing
        lists[2] = params.inputs
    for make in makers(module, "dense"):
        for a, b in zip(make(params), make(lists)):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.every
@pytest.mark.parametrize("module", DENSE, ids=ids)
def test_what_are_no_parameters_of_the_layer_is_named(module):
    (constrain, freeze), params = makers(module, "dense"), init(module, "dense")
    whole = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.int32), params)
    for wrong, word in (
        (None, "params is a builtins.NoneType"),
        (params[:1], "params is a builtins.tuple; it must be Params.kernel, bias"),
        (params._replace(bias=jnp.zeros((4, 1))), "params.bias has shape"),
        (params._replace(kernel=whole.kernel), "params.kernel has dtype int32"),
    ):
        for make in (constrain, freeze):
            with pytest.raises(ValueError, match=word):
                make(wrong)
    if module is not householder:  # its bias says how many outputs there are
        with pytest.raises(ValueError, match=r"params.bias has shape \(5,\).*length 4"):
            constrain(params._replace(bias=jnp.zeros(5)))
    if module not in (head, rescaled):  # whose weights look the same
        with pytest.raises(ValueError, match="params is a lipjax.layers"):
            constrain(constrain(params))


@pytest.mark.few(3)
@pytest.mark.parametrize("module", DENSE, ids=ids)
def test_inputs_may_be_lists_and_a_bias_of_another_length_is_named(module):
    params = init(module, "dense")
    weights = next(makers(module, "dense"))(params)
    x = [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_array_equal(
        module.apply_dense(weights, x), module.apply_dense(weights, jnp.array(x))
    )
    with pytest.raises(ValueError, match=r"weights.bias has shape \(3,\); it must be \(4,\)"):
        module.apply_dense(weights._replace(bias=jnp.zeros(3)), x)
    with pytest.raises(ValueError, match="x has dtype int32"):
        module.apply_dense(weights, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="x is .*numbers in lists of equal length"):
        module.apply_dense(weights, [[1.0], [2.0, 3.0]])


@pytest.mark.few(2)
@pytest.mark.parametrize("module", CONV, ids=ids)
def test_images_may_be_lists_and_a_bias_of_another_length_is_named(module):
    params = init(module, "conv")
    weights = next(makers(module, "conv"))(params)
    x = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        module.apply_conv(weights, x.tolist()), module.apply_conv(weights, x)
    )
    with pytest.raises(ValueError, match=r"weights.bias has shape \(3,\); it must be \(4,\)"):
        module.apply_conv(weights._replace(bias=jnp.zeros(3)), x)
    with pytest.raises(ValueError, match=r"x has shape \(\)"):
        module.apply_conv(weights, 1.0)


@pytest.mark.parametrize("module", [cpl, head, sll], ids=ids)
def test_the_key_is_checked_before_it_is_split(module):
    with pytest.raises(ValueError, match="key is 0"):
        module.init_dense(0, 4, 3)
