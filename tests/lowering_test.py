"""Every row lowers for TPU and CUDA, at full precision wherever it is a bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests import families

PLATFORMS = ("tpu", "cuda")


def lower(fn, *args):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), args)
    return export.export(jax.jit(fn), platforms=PLATFORMS)(*shapes).mlir_module()


@pytest.mark.parametrize("row", families.by_name(families.BOUNDS + families.CONTRACTIONS))
def test_array_functions(row):
    text = lower(jax.value_and_grad(lambda a: row.fn(a).sum()), np.zeros(row.shape, np.float32))
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products and all(line.count("HIGHEST") == 2 for line in products)
    assert "stablehlo.convolution" not in text  # transforms inside would void the error model


def test_negative_control_default_precision_would_be_seen():
    text = lower(lambda a: a @ a.T, np.zeros((3, 3), np.float32))
    assert "dot_general" in text and "HIGHEST" not in text


@pytest.mark.parametrize("layer", families.by_name(families.LAYERS))
def test_layers(layer):
    params = layer.init(jax.random.key(0))

    def loss(params, x):
        return layer.apply(layer.constrain(params), x).sum()

    assert lower(jax.value_and_grad(loss), params, np.zeros(layer.shape, np.float32))


@pytest.mark.parametrize("name,fn", families.CERTIFICATES)
def test_certificates(name, fn):
    assert name and lower(fn, np.zeros(4, np.float32), np.zeros((6, 4), np.float32))
