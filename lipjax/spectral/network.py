r"""Lipschitz bounds of whole networks, read off the program that JAX traces.

`network_bound(fn, x)` traces any function of one array, walks through its operations, and keeps for
every intermediate value a bound on its Lipschitz constant with respect to `x`: a convolution or
matrix product multiplies by its spectral norm, a sum of two branches adds, an activation multiplies
by its slope. Nothing has to be known about the library that the network is written in: Flax NNX,
Linen, Haiku, Equinox and plain functions become the same operations.

A multiplication of each channel by a constant, as batch normalization in evaluation is, is folded
into the convolution or matrix before it, which is exact and smaller than the product of the norms.
What cannot be bounded (a product of two values that both depend on the input, a loop of unknown
length, an unknown operation) is an error that names it; nothing is guessed.

A product of norms is loose for residual layers that are 1-Lipschitz by construction: models of
`lipjax` know a better bound themselves, `model.bound()`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lipjax import _checks
from lipjax.spectral._program import Constant, Decision, Value, Walk
from lipjax.spectral._rules import RULES, activation_slope
from lipjax.typing import Array, Bound


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerBound:
    """One factor of a network's bound.

    Attributes:
        name: The scope it was traced in, if the network names scopes, and what it is.
        kind: `"conv"`, `"dense"`, `"pool"`, `"scale"`, `"activation"` or `"copy"`.
        bound: `float[]`, upper bound on its Lipschitz constant.
        share: `float[]`, the relative change of the network's bound per relative change of this
            one: 1 in a chain, less inside a residual branch.
    """

    name: str = dataclasses.field(metadata={"static": True})
    kind: str = dataclasses.field(metadata={"static": True})
    bound: Array
    share: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetworkBound:
    """What `network_bound` found.

    Attributes:
        value: `float[]`, upper bound on the l2 Lipschitz constant of the network.
        layers: Its factors that are not 1, in the order of the computation.
    """

    value: Array
    layers: tuple[LayerBound, ...]

    @property
    def bound(self) -> Bound:
        """The value as a `Bound` that certificates take."""
        return Bound(self.value, "upper")

    def table(self) -> str:
        """One line per layer: its bound, its share, its kind and name."""
        lines = [f"{'bound':>12} {'share':>6}  kind        layer"]
        lines += [
            f"{float(layer.bound):12.5g} {float(layer.share):6.2f}  {layer.kind:<11} {layer.name}"
            for layer in self.layers
        ]
        return "\n".join([*lines, f"{float(self.value):12.5g}         the network"])


def network_bound(
    fn: Callable[[Array], Array], x: Any, *, num_iters: int | str = 6, gradient: str = "norm"
) -> NetworkBound:
    """Upper bound on the l2 Lipschitz constant of a network, and one per layer.

    Args:
        fn: From one array to one array, as `lambda x: model(x)` of a model in evaluation. A leading
            batch axis is fine: examples that do not mix have the constant of one.
        x: An input, or a `jax.ShapeDtypeStruct` like one. Only its shape and dtype matter.
        num_iters: Gram products per layer, see `gram_iteration`.
        gradient: See `gram_iteration`: the bounds are differentiable in the weights of `fn`.

    Returns:
        `NetworkBound(value, layers)`.

    Guarantee: `|fn(x) - fn(y)| <= value |x - y|` for all x and y of that shape, for the real
    function of the weights that are passed in; the rounding of the bound is included, that of
    evaluating `fn` is not, and what `fn` computes from its weights alone (a normalization of them,
    say) counts as computed. Convolutions are bounded with their padding at the size of `x`.

    Raises:
        ValueError: for an operation that has no bound; the message names it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> weights = jnp.diag(jnp.array([3.0, 1.0]))
        >>> found = network_bound(lambda x: x + 0.5 * jax.nn.relu(x @ weights), jnp.ones((1, 2)))
        >>> round(float(found.value), 3)
        2.5

    Reference: the product bound of Szegedy et al. (2014), https://arxiv.org/abs/1312.6199, with the
    layers' norms by Delattre et al. (2023), https://arxiv.org/abs/2305.16173.
    """
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1:
        raise ValueError(f"x has {len(leaves)} arrays; network_bound takes a function of one.")
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(leaves[0]))
    _checks.real_floating(x=jax.ShapeDtypeStruct(jnp.shape(leaves[0]), dtype))
    closed = jax.make_jaxpr(fn)(x)
    if len(closed.jaxpr.outvars) != 1:
        raise ValueError(
            f"fn returns {len(closed.jaxpr.outvars)} arrays; network_bound takes a function that "
            "returns one: pick it, as in lambda x: model(x)[0] for a tuple."
        )
    walk = Walk(RULES, activation_slope, dict(num_iters=num_iters, gradient=gradient), dtype)
    consts = [Constant(c, jnp.shape(c)) for c in closed.consts]
    (out,) = walk.run(closed.jaxpr, consts, [Value(0)])
    if isinstance(out, Decision):
        raise ValueError("fn returns the outcome of a comparison of x, which jumps: no constant.")
    last = walk.flush(out) if isinstance(out, Value) else walk.record("zero")
    norms = jnp.stack([norm for _, _, norm in walk.layers]) if walk.layers else jnp.zeros(0)

    def total(logs):
        return walk.evaluate(last, norms * jnp.exp(logs))

    value = walk.evaluate(last, norms)
    slopes = lax.stop_gradient(jax.grad(total)(jnp.zeros_like(norms)))
    shares = jnp.where(value > 0, slopes / jnp.where(value > 0, value, 1), 0)
    rows = zip(walk.layers, shares)
    return NetworkBound(value, tuple(LayerBound(n, k, b, s) for (n, k, b), s in rows))


def penalty(network: NetworkBound, *, threshold: float = 1.0) -> Array:
    """`sum_layers max(0, bound - threshold)` over convolutions and matrices: a loss term.

    Add a multiple of it to the loss; its gradient is that of the layers' norms.

    >>> import jax.numpy as jnp
    >>> found = network_bound(lambda x: 3 * (x @ (2 * jnp.eye(2))), jnp.ones((1, 2)))
    >>> round(float(penalty(found)), 3)
    5.0
    """
    _checks.nonnegative(threshold=threshold)
    linear = [layer for layer in network.layers if layer.kind in _LINEAR]
    excess = [jax.nn.relu(layer.bound - threshold) for layer in linear]
    return sum(excess, jnp.zeros(()))


_LINEAR = ("conv", "dense")
