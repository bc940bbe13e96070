"""How much of a signal the contractions of a network keep, as a figure to watch while it trains."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lipjax._numerics import einsum
from lipjax.layers.forms import Linear
from lipjax.nn.constrained import Constrained, Stack
from lipjax.nn.forms import Chain, ConvexMix
from lipjax.typing import Array


def orthogonality(module: nnx.Module) -> Array | None:
    """The mean squared singular value of the contractions of a network, mean over the layers.

    1 where all are orthogonal. An almost-orthogonal layer starts below and, trained with a loss that
    needs a margin, moves towards 1: its bias towards orthogonality. For that layer the figure is the
    mean of `lipjax.layers.proof.orthogonality` over the columns that were scaled.

    Args:
        module: With free parameters, constrained or frozen. Cheap for the latter two.

    Returns:
        `float[]`, of the layers that multiply with one kernel of norm at most 1, convolutions with
        circular padding; None for a network without such layers.

    >>> from lipjax.nn import AOLDense, CayleyDense
    >>> kept = [orthogonality(kind(8, 8, rngs=nnx.Rngs(0))) for kind in (CayleyDense, AOLDense)]
    >>> [round(float(value), 2) for value in kept]
    [1.0, 1.0]
    """
    layers = [
        _kept(layer, layer.weights()).reshape(-1)
        for _, layer in nnx.iter_modules(module)
        if isinstance(layer, Constrained) and not (layer.free is None and layer.explicit is None)
    ]
    values = jnp.concatenate(layers) if layers else jnp.zeros(0)
    return jnp.mean(values) if values.size else None


def _kept(layer, weights):
    """`float[count]`, one for each kernel of the layer."""
    if isinstance(layer, Stack):
        return jax.vmap(functools.partial(_kept, layer.layer))(weights)
    if isinstance(layer, Chain):
        parts = [_kept(inner, one) for inner, one in zip(layer.inner, weights)]
        return jnp.concatenate(parts) if parts else jnp.zeros(0)
    if isinstance(layer, ConvexMix):
        return _kept(layer.layer, weights[0])
    strides = getattr(getattr(layer, "layer", layer), "strides", 1)  # a form has those of its layer
    found = []
    for leaf in jax.tree.leaves(weights, is_leaf=lambda leaf: isinstance(leaf, Linear)):
        if isinstance(leaf, Linear):
            *window, rows, cols = leaf.kernel.shape
            places = math.prod(strides) if isinstance(strides, tuple) else strides ** len(window)
            squared = einsum("tio,tio->", *[leaf.kernel.reshape(-1, rows, cols)] * 2)
            found.append(squared / min(places * rows, cols))
    return jnp.stack(found) if found else jnp.zeros(0)
