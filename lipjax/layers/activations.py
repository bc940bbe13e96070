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
import math
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp

from lipjax import _checks
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


def max_min(x: Array) -> Array:
    """Sorts channels i and i + c/2 of the last axis: all maxima, then all minima.

    An odd last channel passes unchanged. Preserves norms and gradients; 1-Lipschitz.
    Reference: Anil, Lucas, Grosse (2019), https://arxiv.org/abs/1811.05381.

    >>> import jax.numpy as jnp
    >>> max_min(jnp.array([1.0, 5.0, 3.0, 2.0])).tolist()
    [3.0, 5.0, 1.0, 2.0]
    """
    a, b, rest = _pairs(x)
    return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b), rest], axis=-1)


def adjacent_max_min(x: Array) -> Array:
    """Sorts channels 2 i and 2 i + 1 of the last axis, the maximum first; an odd last one passes.

    The same as `max_min` up to the order of the channels, which matters for weights trained with it and
    where a part of the channels is taken afterwards. Preserves norms and gradients; 1-Lipschitz.

    >>> import jax.numpy as jnp
    >>> adjacent_max_min(jnp.array([1.0, 5.0, 3.0, 2.0])).tolist()
    [5.0, 1.0, 3.0, 2.0]
    """
    x = _last_axis(x)
    half = x.shape[-1] // 2
    a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    sorted_pairs = jnp.stack([jnp.maximum(a, b), jnp.minimum(a, b)], axis=-1)
    sorted_pairs = sorted_pairs.reshape(*x.shape[:-1], 2 * half)
    return jnp.concatenate([sorted_pairs, x[..., 2 * half :]], axis=-1)


def group_sort(x: Array, *, group_size: int = 2) -> Array:
    """Sorts each group of neighbouring channels in ascending order; 1-Lipschitz.

    Args:
        x: `float[..., c]` with c a multiple of `group_size`.

    Reference: Anil, Lucas, Grosse (2019), https://arxiv.org/abs/1811.05381.

    >>> import jax.numpy as jnp
    >>> group_sort(jnp.array([3.0, 1.0, 2.0, 4.0])).tolist()
    [1.0, 3.0, 2.0, 4.0]
    """
    x = _last_axis(x)
    _checks.integer(1, group_size=group_size)
    if x.shape[-1] % group_size:
        raise ValueError(
            f"group_size is {group_size}; it must divide the {x.shape[-1]} channels of x."
        )
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    return jnp.sort(groups, axis=-1).reshape(x.shape)


def full_sort(x: Array) -> Array:
    """Sorts all channels in ascending order; preserves norms and gradients; 1-Lipschitz.

    Reference: Anil, Lucas, Grosse (2019), https://arxiv.org/abs/1811.05381.

    >>> import jax.numpy as jnp
    >>> full_sort(jnp.array([3.0, 1.0, 2.0, 4.0])).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    x = _last_axis(x)
    return jnp.sort(x, axis=-1)


def beta_abs(x: Array, *, beta: float = 0.5) -> Array:
    """Absolute value of the first share `beta` of the channels (rounded down), the rest unchanged.

    Preserves norms and, but for zeros, gradients; 1-Lipschitz. The beta-Abs of LipNeXt; with 0.5 it
    is known as HalfAbs and registered as "half_abs".

    Args:
        x: `float[..., c]`.
        beta: In [0, 1].

    >>> import jax.numpy as jnp
    >>> beta_abs(jnp.array([-1.0, 2.0, -3.0, -4.0])).tolist()
    [1.0, 2.0, -3.0, -4.0]
    """
    x = _last_axis(x)
    _checks.within(0.0, 1.0, beta=beta)
    count = math.floor(beta * x.shape[-1] + 1e-6)
    return jnp.concatenate([jnp.abs(x[..., :count]), x[..., count:]], axis=-1)


def householder(x: Array, angles: Array) -> Array:
    """Reflects each pair of channels i and i + c/2 that lies on one side of a line.

    With `v = (sin(angle / 2), -cos(angle / 2))` a pair z becomes `z - 2 max(0, <v, z>) v`: itself, or
    its mirror image `(z1 cos + z2 sin, z1 sin - z2 cos)` of `angle` where `<v, z>` is positive. An
    odd last channel passes unchanged. At `pi / 2`, the published start, pairs are sorted with the
    smaller entry first (`max_min` with its halves exchanged); at `5 pi / 2` this is `max_min`.

    Args:
        x: `float[..., c]`.
        angles: `float[c // 2]`, in radians, learnt.

    Returns:
        `float[..., c]`.

    Guarantee: preserves norms and, almost everywhere, gradients; continuous, hence 1-Lipschitz; up
    to a few roundings of the norm of each pair. On the line itself, and at 0, the derivative is that
    of the identity. NaN in, NaN out.

    Raises:
        ValueError: for angles of another shape.

    Reference: Singla, Singla, Feizi (2022), https://arxiv.org/abs/2108.04062; the side that is
    reflected is that of their code (the other one is `angles + 2 pi`).

    >>> import jax.numpy as jnp
    >>> householder(jnp.array([5.0, 1.0, 3.0, 2.0]), jnp.full(2, jnp.pi / 2)).round(4).tolist()
    [3.0, 1.0, 5.0, 2.0]
    """
    x = _last_axis(x)
    a, b, rest = _pairs(x)
    angles = _checks.array(angles=angles)
    _check_angles(angles, (a.shape[-1],), x)
    sin, cos = (jnp.broadcast_to(f(angles / 2), a.shape) for f in (jnp.sin, jnp.cos))
    twice = 2 * jax.nn.relu(a * sin - b * cos)
    return jnp.concatenate([a - twice * sin, b + twice * cos, rest], axis=-1)


def householder_order_2(x: Array, angles: Array) -> Array:
    """Reflects or turns each pair of channels i and i + c/2 by the sector it lies in.

    In each plane, with t0, t1, t2 the three angles, counted from the ray at `t0 / 2`:

    - from 0 to `t1 / 2` nothing changes;
    - from there to `(t1 + t2) / 2` the pair is mirrored, `phi -> t0 + t1 - phi`;
    - from there to `pi + t2 / 2` it is turned, `phi -> phi - t2`;
    - in the rest of the circle it is mirrored, `phi -> t0 - phi`.

    Neighbouring maps agree on the ray between them. The last sector is all that the others leave:
    asked for by its own bounds, it misses the float32 angles that round to a full circle, and pairs
    there become 0.

    Args:
        x: `float[..., c]`; an odd last channel passes unchanged.
        angles: `float[3, c // 2]`, in radians, learnt, clipped to [0, 2 pi]. The published start is
            uniform in [0, pi].

    Returns:
        `float[..., c]`.

    Guarantee: preserves norms and, almost everywhere, gradients; continuous, hence 1-Lipschitz; up
    to a few roundings of the norm of each pair. Choosing the sector carries no gradient, so that of
    a pair of zeros is finite. NaN in, NaN out.

    Raises:
        ValueError: for angles of another shape.

    Reference: Singla, Singla, Feizi (2022), https://arxiv.org/abs/2108.04062, by their code.

    >>> import jax.numpy as jnp
    >>> angles = jnp.array([[0.0], [jnp.pi], [0.0]])
    >>> householder_order_2(jnp.array([-3.0, 4.0]), angles).round(4).tolist()
    [-3.0, 4.0]
    """
    x = _last_axis(x)
    a, b, rest = _pairs(x)
    angles = _checks.array(angles=angles)
    _check_angles(angles, (3, a.shape[-1]), x)
    circle = 2 * math.pi
    t0, t1, t2 = jnp.clip(angles, 0, circle)
    phi = jnp.arctan2(jax.lax.stop_gradient(b), jax.lax.stop_gradient(a))

    def wide(row):
        return jnp.broadcast_to(row, a.shape)

    phi = jnp.mod(phi - wide(t0 / 2), circle)
    bounds = (t1 / 2, (t1 + t2) / 2, math.pi + t2 / 2)
    sectors = [phi < wide(bound) for bound in bounds]
    turns = [jnp.zeros_like(t0), t0 + t1, t2, t0]
    cos, sin = (
        jnp.select(sectors, [wide(f(t)) for t in turns[:3]], wide(f(turns[3])))
        for f in (jnp.cos, jnp.sin)
    )
    side = jnp.where(sectors[0] | (sectors[2] & ~sectors[1]), -1, 1).astype(x.dtype)
    return jnp.concatenate([a * cos + b * sin, side * (a * sin - b * cos), rest], axis=-1)


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


def _last_axis(x):
    """x as an array that has channels."""
    x = _checks.array(x=x)
    _checks.at_least_rank(1, "[..., channels]", x=x)
    return x


def _pairs(x):
    """Channels i, channels i + c/2, and an odd last one."""
    x = _last_axis(x)
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]


def _check_angles(angles, shape, x):
    if jnp.shape(angles) != shape:
        raise ValueError(
            f"angles has shape {jnp.shape(angles)}; it must be {shape} for the {x.shape[-1]} "
            "channels of x."
        )


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
