"""Activations and what is known about their slopes.

The residual and sandwich forms are 1-Lipschitz only around an activation that acts on each entry
alone and whose slope stays in [0, 1]. A norm-preserving activation such as MaxMin, or one with
negative slopes such as the absolute value, breaks the proof and the property: it belongs between
layers, where being 1-Lipschitz is enough.

Those that preserve the norm of every input and gradient (almost everywhere): `max_min`,
`adjacent_max_min`, `group_sort`, `full_sort`, `householder`, `householder_order_2`, `beta_abs` and the
absolute value.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp

from lipjax import _checks
from lipjax.layers._norm_preserving import adjacent_max_min as adjacent_max_min
from lipjax.layers._norm_preserving import beta_abs as beta_abs
from lipjax.layers._norm_preserving import full_sort as full_sort
from lipjax.layers._norm_preserving import group_sort as group_sort
from lipjax.layers._norm_preserving import householder as householder
from lipjax.layers._norm_preserving import householder_order_2 as householder_order_2
from lipjax.layers._norm_preserving import max_min as max_min
from lipjax.typing import Array


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function and its proved slopes.

    Attributes:
        name: What error messages call it.
        fn: Maps an array to an array of the same shape.
        slopes: Smallest and largest slope if it acts on each entry alone, else None.
        lipschitz: Its l2 Lipschitz constant.

    >>> import jax.numpy as jnp
    >>> half = Activation("half", lambda x: 0.5 * x, slopes=(0.0, 0.5), lipschitz=0.5)
    >>> slope_restricted(half)(jnp.float32(2.0)).item()
    1.0
    """

    name: str
    fn: Callable[[Array], Array]
    slopes: tuple[float, float] | None
    lipschitz: float = 1.0

    def __reduce__(self):
        """Those with a name of this module are pickled by it: JAX's functions cannot be."""
        if _REGISTRY.get(self.name) is self:
            return resolve, (self.name,)
        return Activation, (self.name, self.fn, self.slopes, self.lipschitz)

    def __post_init__(self):
        if not callable(self.fn):
            raise ValueError(f"fn is {self.fn!r}; it must be a function of an array.")
        _checks.amount(lipschitz=self.lipschitz)
        if self.slopes is None:
            return
        try:
            low, high = map(float, self.slopes)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"slopes is {self.slopes!r}; it must be (smallest, largest)."
            ) from error
        object.__setattr__(self, "slopes", (low, high))
        if not low <= high or self.lipschitz < max(abs(low), abs(high)):
            raise ValueError(
                f"slopes is {self.slopes} and lipschitz is {self.lipschitz}; slopes must be "
                "(smallest, largest) and lipschitz at least the largest slope in size."
            )


class ActivationModule:
    """A base class of modules that compute their `activation` and nothing else, as `lipjax.nn.MaxMin`.

    Wherever an activation is asked for, such a module stands for its attribute `activation`. Of other
    modules that have one, as a layer followed by it, it is a part.
    """

    activation: Activation


def householder_of(angles: Array) -> Activation:
    """The Householder activation with these angles, of order 1 or 2 by their shape; 1-Lipschitz.

    Args:
        angles: `float[c // 2]` or `float[3, c // 2]`.

    >>> import jax.numpy as jnp
    >>> householder_of(jnp.full(2, jnp.pi / 2)).fn(jnp.array([5.0, 1.0, 3.0, 2.0])).round(4).tolist()
    [3.0, 1.0, 5.0, 2.0]
    """
    _checks.ranked((1, 2), "[c // 2] or [3, c // 2]", angles=angles)
    order = jnp.ndim(angles)
    fn = householder if order == 1 else householder_order_2
    return Activation(f"householder of order {order}", functools.partial(fn, angles=angles), None)


def leaky_relu(alpha: float = 0.1) -> Activation:
    """ReLU with slope `alpha` in [0, 1] for negative entries.

    >>> import jax.numpy as jnp
    >>> leaky_relu(0.5).fn(jnp.array([-2.0, 2.0])).tolist()
    [-1.0, 2.0]
    """
    _checks.within(0.0, 1.0, alpha=alpha)
    return _leaky_relu_of(float(alpha))


@functools.cache
def _leaky_relu_of(alpha: float) -> Activation:
    fn = functools.partial(_leaky_relu, alpha)
    return Activation(f"leaky_relu({alpha})", fn, (alpha, 1.0))


def group_sort_of(group_size: int) -> Activation:
    """`group_sort` with groups of that size, on `float[..., c]`; 1-Lipschitz.

    >>> import jax.numpy as jnp
    >>> group_sort_of(2).fn(jnp.array([3.0, 1.0, 2.0, 4.0])).tolist()
    [1.0, 3.0, 2.0, 4.0]
    """
    _checks.integer(1, group_size=group_size)
    return _group_sort_of(int(group_size))


@functools.cache
def _group_sort_of(group_size: int) -> Activation:
    sort = functools.partial(group_sort, group_size=group_size)
    return Activation(f"group_sort({group_size})", sort, None)


def beta_abs_of(beta: float) -> Activation:
    """`beta_abs` with that share of the channels, on `float[..., c]`; 1-Lipschitz.

    >>> import jax.numpy as jnp
    >>> beta_abs_of(0.5).fn(jnp.array([-1.0, -2.0])).tolist()
    [1.0, -2.0]
    """
    _checks.within(0.0, 1.0, beta=beta)
    return _beta_abs_of(float(beta))


@functools.cache
def _beta_abs_of(beta: float) -> Activation:
    return Activation(f"beta_abs({beta})", functools.partial(beta_abs, beta=beta), (-1.0, 1.0))


def _leaky_relu(alpha, x):
    return jax.nn.leaky_relu(x, alpha)


def _identity(x):
    return x


_SELU_SLOPE = 1.0507009873554805 * 1.6732632423543772

RELU = Activation("relu", jax.nn.relu, (0.0, 1.0))
_REGISTRY = {
    a.name: a
    for a in (
        RELU,
        leaky_relu(),
        Activation("identity", _identity, (1.0, 1.0)),
        Activation("relu6", jax.nn.relu6, (0.0, 1.0)),
        Activation("hard_tanh", jax.nn.hard_tanh, (0.0, 1.0)),
        Activation("elu", jax.nn.elu, (0.0, 1.0)),
        Activation("celu", jax.nn.celu, (0.0, 1.0)),
        Activation("selu", jax.nn.selu, (0.0, _SELU_SLOPE + 1e-6), _SELU_SLOPE + 1e-6),
        Activation("softplus", jax.nn.softplus, (0.0, 1.0)),
        Activation("tanh", jnp.tanh, (0.0, 1.0)),
        Activation("sigmoid", jax.nn.sigmoid, (0.0, 0.25), 0.25),
        Activation("abs", jnp.abs, (-1.0, 1.0)),
        Activation("gelu", jax.nn.gelu, (-0.13, 1.13), 1.13),
        Activation("silu", jax.nn.silu, (-0.1, 1.1), 1.1),
        Activation("max_min", max_min, None),
        Activation("adjacent_max_min", adjacent_max_min, None),
        Activation("group_sort", group_sort, None),
        Activation("full_sort", full_sort, None),
        Activation("half_abs", beta_abs, (-1.0, 1.0)),
    )
}
_REGISTRY["leaky_relu"] = _REGISTRY.pop("leaky_relu(0.1)")
_BY_FUNCTION = {a.fn: a for a in _REGISTRY.values()} | {jax.nn.tanh: _REGISTRY["tanh"]}


def resolve(activation) -> Activation:
    """The `Activation` behind a name, a known function, an `ActivationModule` or an `Activation`.

    Raises:
        ValueError: for a name or function about which nothing is known.

    >>> resolve("tanh").slopes
    (0.0, 1.0)
    """
    if isinstance(activation, Activation):
        return activation
    found = None
    if isinstance(activation, str):
        found = _REGISTRY.get(activation)
    elif callable(activation):
        hashable = isinstance(activation, Hashable)
        found = _BY_FUNCTION.get(activation) if hashable else None
        if found is None and isinstance(activation, ActivationModule):
            found = activation.activation
    if found is None:
        raise ValueError(
            f"activation is {activation!r}, about whose slopes nothing is known; it must be one of "
            f"{sorted(_REGISTRY)} or lipjax.layers.activations.Activation(name, fn, slopes=..., "
            "lipschitz=...) with slopes that you have proved."
        )
    return found


def named(activation) -> Activation | str:
    """As `resolve`, but a name stays one: what a module keeps."""
    known = resolve(activation)
    return activation if isinstance(activation, str) else known


def slope_restricted(activation) -> Callable[[Array], Array]:
    """The activation as residual and sandwich forms may use it, with slopes in [0, 1].

    A largest slope b above 1 is divided out (`s / b`).

    Raises:
        ValueError: for one that mixes entries or has a negative slope, with the reason.

    >>> import jax.numpy as jnp
    >>> slope_restricted("relu")(jnp.array([-2.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    known = resolve(activation)
    if known.slopes is None:
        raise ValueError(
            f"activation is {known.name!r}, which mixes channels; inside a residual or sandwich "
            "form the proof needs a function of each entry alone with slopes in [0, 1], and with "
            f"{known.name!r} the layer is in fact not 1-Lipschitz. Use for example 'relu' inside "
            f"and {known.name!r} between layers."
        )
    low, high = known.slopes
    if low < 0:
        raise ValueError(
            f"activation is {known.name!r}, whose slope goes down to {low}; inside a residual or "
            "sandwich form the proof needs slopes in [0, 1], and with a negative slope the layer "
            f"is in fact not 1-Lipschitz. Use for example 'relu' inside and {known.name!r} between "
            "layers."
        )
    if high > 1:
        return _divided(known, high)
    return known.fn


def one_lipschitz(activation) -> Callable[[Array], Array]:
    """The activation as it may stand between layers: divided by its Lipschitz constant if above 1.

    >>> import jax.numpy as jnp
    >>> one_lipschitz("abs")(jnp.array([-2.0, 2.0])).tolist()
    [2.0, 2.0]
    """
    known = resolve(activation)
    if known.lipschitz > 1:
        return _divided(known, known.lipschitz)
    return known.fn


@functools.cache
def _divided(known: Activation, by: float):
    """One function per activation, so that modules that hold it compare equal."""
    return functools.partial(_over, known, by)


def _over(known, by, x):
    return known.fn(x) / by
