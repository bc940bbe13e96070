"""The forms of `lipjax.layers.forms` as Flax modules: what takes layers and makes a layer.

`Residual(layer)` and `ConvexMix(layer)` turn a contraction into a layer with a skip:
`Residual(CayleyDense(64, 64, rngs=rngs))` is `x - 2 A relu(A^T x + b)` with an orthogonal A.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lipjax import _numerics
from lipjax.layers import activations, forms, lmi
from lipjax.nn.constrained import Constrained, refuse_classes, take_params
from lipjax.typing import Bound


class Residual(Constrained):
    """`x - 2 A s(A^T x + b)` for any contraction `x -> A^T x + b`.

    Args:
        layer: A linear layer of `lipjax.nn`, with any stride: A is the exact adjoint, which leads back
            to the shape of x. Its parameters become those of this module.
        activation: One with slopes in [0, 1].

    Guarantee: 1-Lipschitz where the norm of A is at most 1, see `lipjax.layers.forms.residual_of`.

    >>> import jax.numpy as jnp
    >>> from lipjax.nn import CayleyDense
    >>> layer = Residual(CayleyDense(4, 3, rngs=nnx.Rngs(0)))
    >>> layer(jnp.ones((2, 4))).shape, layer.bound().kind
    ((2, 4), 'upper')
    """

    def __init__(self, layer: Constrained, *, activation="relu"):
        activations.slope_restricted(activation)
        refuse_classes(layer=[layer])
        if getattr(layer, "linear", None) is None:
            raise ValueError(
                f"layer is a {type(layer).__name__}; it must be a linear layer, such as CayleyDense "
                "or AOLConv."
            )
        super().__init__(*take_params(layer=[layer]))
        self.layer = layer
        self.activation = activations.named(activation)

    def constrain(self, params):
        return self.layer.constrain(params)

    def apply(self, weights, x):
        linear = functools.partial(self.layer.linear, weights)
        return forms.residual_of(linear, x, weights.bias, activation=self.activation)

    def matrices(self, weights, shape) -> lmi.Matrices:
        return lmi.of_residual(functools.partial(self.layer.linear, weights), shape)

    def freeze_params(self, params):
        return self.layer.freeze_params(params)

    def bound_weights(self, weights) -> Bound:
        return forms.residual_of_bound(self.layer.bound_weights(weights))


class Chain(Constrained):
    """Layers one after the other, as one layer: for a `Stack` of pairs, or a part of a network.

    Args:
        layers: Layers of `lipjax.nn`, or activations by name or as modules such as `MaxMin()`, which are
            divided by their Lipschitz constant if above 1. The parameters of the layers become those
            of this module.

    Guarantee: the product of the layers' bounds.

    >>> from lipjax.nn import CayleyDense, Householder
    >>> rngs = nnx.Rngs(0)
    >>> chain = Chain(CayleyDense(4, 6, rngs=rngs), Householder(6, rngs=rngs))
    >>> chain(jnp.ones((2, 4))).shape, chain.bound().kind
    ((2, 6), 'upper')
    """

    def __init__(self, *layers):
        if not layers:
            raise ValueError("layers is empty; it must hold at least one layer.")
        refuse_classes(layers=layers)
        for layer in layers:
            known = isinstance(layer, Constrained | activations.ActivationModule)
            if isinstance(layer, list | tuple) or (isinstance(layer, nnx.Module) and not known):
                raise ValueError(
                    f"layers has a {type(layer).__name__}; each must be a layer of lipjax.nn, or a "
                    "1-Lipschitz activation by name, one argument each."
                )
        names = tuple(
            None if isinstance(layer, Constrained) else activations.named(layer) for layer in layers
        )
        inner = [layer for layer in layers if isinstance(layer, Constrained)]
        super().__init__(tuple(take_params(layers=inner)))
        self.inner = nnx.List(inner)
        self.names = names

    def constrain(self, params):
        return tuple(layer.constrain(p) for layer, p in zip(self.inner, params))

    def apply(self, weights, x):
        rest = iter(zip(self.inner, weights))
        for name in self.names:
            if name is None:
                layer, one = next(rest)
                x = layer.apply(one, x)
            else:
                x = activations.one_lipschitz(name)(x)
        return x

    def freeze_params(self, params):
        return tuple(layer.freeze_params(p) for layer, p in zip(self.inner, params))

    def bound_weights(self, weights) -> Bound:
        total = Bound(1.0, "upper")
        for layer, one in zip(self.inner, weights):
            total = total * layer.bound_weights(one)
        return total


class ConvexMix(Constrained):
    """`g x + (1 - g) layer(x)` with a learned `g = sigmoid(logit)`, which starts at one half.

    Args:
        layer: Any layer of `lipjax.nn` that keeps the shape.

    Guarantee: 1-Lipschitz where the layer is.

    >>> import jax.numpy as jnp
    >>> from lipjax.nn import CayleyDense
    >>> ConvexMix(CayleyDense(4, 4, rngs=nnx.Rngs(0)))(jnp.ones((2, 4))).shape
    (2, 4)
    """

    def __init__(self, layer: Constrained):
        (params,) = take_params(layer=[layer])
        super().__init__((params, jnp.zeros(())))
        self.layer = layer

    def constrain(self, params):
        return self.layer.constrain(params[0]), params[1]

    def apply(self, weights, x):
        y = self.layer.apply(weights[0], x)
        if y.shape != x.shape:
            raise ValueError(
                f"layer maps shape {x.shape} to {y.shape}; to be mixed with its input it must keep it."
            )
        return forms.convex_mix(x, y, weights[1])

    def gate(self, weights):
        """The share of x, `float[]`."""
        return jax.nn.sigmoid(weights[1])

    def matrices(self, weights, shape) -> lmi.Matrices:
        return lmi.of_mix(self.layer.matrices(weights[0], shape), self.gate(weights))

    def unmixed(self, weights):
        layer, inner, share = self.layer.unmixed(weights[0])
        return layer, inner, share * (1 - self.gate(weights))

    def freeze_params(self, params):
        return self.layer.freeze_params(params[0]), params[1]

    def bound_weights(self, weights) -> Bound:
        bound = self.layer.bound_weights(weights[0])
        if np.isnan(_numerics.on_host_float64(lambda logit: logit, weights[1])):
            return Bound(float("inf"), "upper")
        return Bound(max(1.0, float(bound.value)) * (1 + 1e-6), "upper")
