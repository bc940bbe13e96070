r"""Lipschitz bounds of whole networks, read off the program that JAX traces.

`network_bound(fn, x)` traces any function of one array, walks through its operations, and keeps for
every intermediate value a bound on its Lipschitz constant with respect to `x`: a convolution or
matrix product multiplies by its spectral norm, a sum of two branches adds, an activation multiplies
by its slope. Nothing has to be known about the library that the network is written in: Flax NNX,
Linen, Haiku, Equinox and plain functions become the same operations.

A multiplication of each channel by a constant, as batch normalization in evaluation is, is folded
into the convolution or matrix before it, which is exact and smaller than the product of the norms.
What cannot be bounded (a product of two values that both depend on the input, a loop, an unknown
operation) is an error that names it; nothing is guessed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from lipjax import _checks
from lipjax._numerics import round_up, safe_norm, unit_roundoff
from lipjax.spectral.conv import conv_gram_iteration
from lipjax.spectral.gram import _any_nonzero, gram_iteration
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
    evaluating `fn` is not. Convolutions are bounded with their padding at the size of `x`.

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
    walk = _Walk(dict(num_iters=num_iters, gradient=gradient), dtype)
    consts = [_Constant(c, jnp.shape(c)) for c in closed.consts]
    (out,) = walk.run(closed.jaxpr, consts, [_Value(0)])
    if isinstance(out, _Decision):
        raise ValueError("fn returns the outcome of a comparison of x, which jumps: no constant.")
    last = walk.flush(out) if isinstance(out, _Value) else walk.record("zero")
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


class _Constant(NamedTuple):
    """A value that does not depend on the input; `array` broadcasts to `shape`."""

    array: Any
    shape: tuple[int, ...]

    def full(self):
        return jnp.broadcast_to(self.array, self.shape)


class _Linear(NamedTuple):
    """A convolution or matrix whose bound is not taken yet: what scales its channels may follow.

    Attributes:
        kind: `"conv"` or `"dense"`.
        name: For the table.
        kernel: `float[*window, in, out]` or `float[in, out]`.
        axis: The axis of the output that has the channels.
        norm: `kernel -> float[]`.
    """

    kind: str
    name: str
    kernel: Array
    axis: int
    norm: Callable
    folds: int = 0  # how often a constant was multiplied in, each with a rounding of its own
    lost: Array | float = 0.0  # bound on the norm of what those products lost to underflow


class _Value(NamedTuple):
    """A value that depends on the input: its bound is that of node `node`, then `linear`."""

    node: int
    linear: _Linear | None = None


class _Decision(NamedTuple):
    """A truth value or integer that depends on the input."""

    why: str


class _Walk:
    """Walks through a program; bounds are nodes of a small one: products, sums, hypotenuses."""

    def __init__(self, options, dtype):
        self.options, self.dtype = options, dtype
        self.nodes = [("input",)]
        self.layers = []  # (name, kind, norm)
        self.flushed = {}

    def record(self, *node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def layer(self, node: int, name, kind, norm) -> int:
        """The node after a layer with that Lipschitz constant."""
        norm = jnp.asarray(norm)
        if norm.dtype != self.dtype:
            norm = jnp.where(norm > 0, _floored(round_up(norm).astype(self.dtype)), 0 * norm)
        self.layers.append((name, kind, norm.astype(self.dtype)))
        return self.record("layer", node, len(self.layers) - 1)

    def flush(self, value: _Value) -> int:
        """The node of the value itself, its pending linear map included."""
        linear = value.linear
        if linear is None:
            return value.node
        key = (value.node, id(linear))
        if key not in self.flushed:
            kernel = linear.kernel
            # A rounding of every entry moves the norm by u |K|_F <= u sqrt(taps min(in, out)) |K|.
            spread = 2 * linear.folds * math.sqrt(kernel.size / max(kernel.shape[-2:]))
            norm = linear.norm(kernel) * (1 + 2 * spread * unit_roundoff(kernel.dtype))
            norm = norm + linear.lost
            node = self.layer(value.node, linear.name, linear.kind, norm)
            self.flushed[key] = node, linear  # which keeps the id in use
        return self.flushed[key][0]

    def evaluate(self, last: int, norms):
        values = []
        for kind, *args in self.nodes:
            if kind == "input":
                value = jnp.ones((), norms.dtype)
            elif kind == "zero":
                value = jnp.zeros((), norms.dtype)
            elif kind == "layer":
                before, norm = values[args[0]], norms[args[1]]
                product = round_up(before * norm)
                value = jnp.where((before == 0) | (norm == 0), product, _floored(product))
            elif kind == "sum":
                value = round_up(sum(values[i] for i in args), len(args))
            else:
                value = round_up(safe_norm(jnp.stack([values[i] for i in args])), len(args) + 4)
            values.append(value)
        return values[last]

    def run(self, jaxpr, consts, args):
        """The values of the outputs of a jaxpr."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

        def read(var):
            if isinstance(var, core.Literal):
                return _Constant(jnp.asarray(var.val, var.aval.dtype), var.aval.shape)
            return known[var]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            known.update(zip(eqn.outvars, self.apply(eqn, inputs)))
        return [read(v) for v in jaxpr.outvars]

    def apply(self, eqn, inputs):
        name, params = eqn.primitive.name, eqn.params
        if all(isinstance(i, _Constant) for i in inputs) and name not in _CALLS:
            return self.constant(eqn, inputs)
        inner = next((params[k] for k in ("jaxpr", "call_jaxpr") if k in params), None)
        if name in _CALLS:
            slope = _activation_slope(params.get("name"), inner, inputs)
            if slope is not None:
                (value,) = (i for i in inputs if isinstance(i, _Value))
                node = self.flush(value)
                if isinstance(slope, jax.Array) or slope != 1:
                    node = self.layer(node, self.name(eqn, params["name"]), "activation", slope)
                return [_Value(node)]
            if inner is None:
                raise ValueError(self.refusal(eqn, "its program is not visible"))
            if isinstance(inner, core.ClosedJaxpr):
                consts = [_Constant(c, jnp.shape(c)) for c in inner.consts]
                return self.run(inner.jaxpr, consts, inputs)
            return self.run(inner, [], inputs)
        if any(isinstance(i, _Decision) for i in inputs):
            if name in _LOGIC:
                return [_Decision(name)]
            raise ValueError(self.refusal(eqn, "it decides by a comparison of the input"))
        if name in _LOGIC:
            return [_Decision(name)]
        if name == "split":
            return [_Value(self.flush(inputs[0]))] * len(eqn.outvars)
        if name not in _RULES or len(eqn.outvars) > 1:
            raise ValueError(self.refusal(eqn, "its Lipschitz constant is not known here"))
        if name in _BROADCASTING:  # a scalar that meets an array is copied to all its entries
            out = eqn.outvars[0].aval.shape
            inputs = [
                self.copied(eqn, i, math.prod(out) // max(1, math.prod(v.aval.shape)))
                for i, v in zip(inputs, eqn.invars)
            ]
        return [_RULES[name](self, eqn, inputs)]

    def copied(self, eqn, value, copies):
        """The value seen that many times; constants as they are."""
        if copies == 1 or not isinstance(value, _Value):
            return value
        name = self.name(eqn, f"{copies} copies")
        return _Value(self.layer(self.flush(value), name, "copy", _root(copies)))

    def constant(self, eqn, inputs):
        """Evaluates an operation on constants; a broadcast keeps its small operand."""
        if eqn.primitive.name == "broadcast_in_dim" and len(inputs) == 1:
            shape, where = eqn.params["shape"], eqn.params["broadcast_dimensions"]
            if inputs[0].array.shape == inputs[0].shape:
                small = [1] * len(shape)
                for axis, size in zip(where, inputs[0].shape):
                    small[axis] = size
                return [_Constant(jnp.reshape(inputs[0].array, small), tuple(shape))]
        out = eqn.primitive.bind(*(i.full() for i in inputs), **eqn.params)
        out = out if eqn.primitive.multiple_results else [out]
        return [_Constant(o, jnp.shape(o)) for o in out]

    def name(self, eqn, what) -> str:
        scope = str(eqn.source_info.name_stack)
        return f"{scope}: {what}" if scope else what

    def refusal(self, eqn, why) -> str:
        shapes = ", ".join(str(v.aval.shape) for v in eqn.invars)
        return (
            f"fn contains the operation {eqn.primitive.name!r} on values of shape {shapes} that "
            f"depend on x: {why}. Bound that part by itself and multiply."
        )

    def scaled(self, eqn, value: _Value, factor: _Constant) -> _Value:
        """The value times a constant, folded into a linear map whose channels it scales."""
        small = factor.array
        shape = (1,) * (len(factor.shape) - small.ndim) + small.shape
        linear = value.linear
        if linear is not None and all(
            n == 1 for axis, n in enumerate(shape) if axis != linear.axis
        ):
            kernel = linear.kernel
            small = small.reshape(-1).astype(kernel.dtype)
            floor = 2 * kernel.size * float(jnp.finfo(kernel.dtype).tiny)
            lost = round_up(linear.lost * _largest(small), 2)
            lost = lost + floor * (1 + jnp.max(jnp.abs(kernel)))
            kernel = kernel * jnp.broadcast_to(small, kernel.shape)
            folded = linear._replace(kernel=kernel, folds=linear.folds + 1, lost=lost)
            return value._replace(linear=folded)
        largest = _largest(small)
        node = self.flush(value)
        if isinstance(largest, jax.core.Tracer) or float(largest) != 1:
            node = self.layer(node, self.name(eqn, "times a constant"), "scale", round_up(largest))
        return _Value(node)


def _floored(value):
    """At least the smallest normal number: products below it come out as zero."""
    return jnp.maximum(value, float(jnp.finfo(value.dtype).tiny))


def _largest(constant):
    """The largest absolute entry, at least the smallest normal number unless all bits are zero."""
    constant = jnp.asarray(constant)
    largest = jnp.max(jnp.abs(constant))
    if constant.dtype not in (jnp.float32, jnp.float64):
        return largest.astype(jnp.float32)
    axes = tuple(range(constant.ndim))
    return jnp.where(_any_nonzero([constant], axes) & ~(largest > 0), _floored(largest), largest)


def _keep(walk, eqn, inputs):
    """Operations of norm 1 that move the entries, and elementwise ones of slope at most 1."""
    return _Value(walk.flush(inputs[0]))


def _affine(walk, eqn, inputs):
    """Sums: of two branches, or with a constant, which changes no difference."""
    values = [i for i in inputs if isinstance(i, _Value)]
    if len(values) == 1:
        return values[0]
    return _Value(walk.record("sum", *(walk.flush(v) for v in values)))


def _negated(walk, eqn, inputs):
    return inputs[0]


def _product(walk, eqn, inputs):
    values = [i for i in inputs if isinstance(i, _Value)]
    if len(values) == 2:
        raise ValueError(walk.refusal(eqn, "a product of two such values has no constant"))
    factor = inputs[1] if isinstance(inputs[0], _Value) else inputs[0]
    return walk.scaled(eqn, values[0], factor)


def _quotient(walk, eqn, inputs):
    if not isinstance(inputs[1], _Constant):
        raise ValueError(walk.refusal(eqn, "a division by such a value has no constant"))
    divisor = jnp.abs(inputs[1].array)
    inverse = jnp.where(jnp.isinf(divisor), 0, _floored(round_up(1 / divisor)))
    return walk.scaled(eqn, inputs[0], _Constant(inverse, inputs[1].shape))


def _joined(walk, eqn, inputs):
    """Elementwise maxima and concatenations: no more than the hypotenuse of the branches."""
    nodes = [walk.flush(i) for i in inputs if isinstance(i, _Value)]
    return _Value(nodes[0] if len(nodes) == 1 else walk.record("hypot", *nodes))


def _clamped(walk, eqn, inputs):
    low, value, high = inputs
    if not (isinstance(low, _Constant) and isinstance(high, _Constant)):
        raise ValueError(walk.refusal(eqn, "its limits depend on the input"))
    return _keep(walk, eqn, [value])


def _selected(walk, eqn, inputs):
    return _joined(walk, eqn, inputs[1:])  # by a constant: decisions were refused before


def _broadcast(walk, eqn, inputs):
    """Copies: the norm is the square root of their number."""
    copies = math.prod(eqn.params["shape"]) // max(1, math.prod(eqn.invars[0].aval.shape))
    return _Value(walk.flush(walk.copied(eqn, inputs[0], copies)))


def _repeated(walk, eqn, inputs):
    copies = eqn.outvars[0].aval.size // max(1, eqn.invars[0].aval.size)
    return _Value(walk.flush(walk.copied(eqn, inputs[0], copies)))


def _sliced(walk, eqn, inputs):
    if not all(isinstance(i, _Constant) for i in inputs[1:]):
        raise ValueError(walk.refusal(eqn, "its place depends on the input"))
    return _keep(walk, eqn, inputs)


def _reduced_sum(walk, eqn, inputs):
    shape = eqn.invars[0].aval.shape
    count = math.prod(shape[axis] for axis in eqn.params["axes"])
    node = walk.flush(inputs[0])
    if count == 1:
        return _Value(node)
    return _Value(walk.layer(node, walk.name(eqn, f"sum of {count}"), "pool", _root(count)))


def _padded(walk, eqn, inputs):
    if not isinstance(inputs[1], _Constant):
        raise ValueError(walk.refusal(eqn, "it is padded with a value of the input"))
    return _keep(walk, eqn, inputs)


def _pooled(walk, eqn, inputs, *, summed):
    """A point lies in at most `ceil(window / stride)` windows per axis."""
    params = eqn.params
    if max((*params["base_dilation"], *params["window_dilation"])) > 1:
        raise ValueError(walk.refusal(eqn, "a dilated window is not supported"))
    window, strides = params["window_dimensions"], params["window_strides"]
    seen = math.prod(-(-w // s) for w, s in zip(window, strides))
    size = math.prod(window) if summed else 1
    node = walk.flush(inputs[0])
    if seen * size == 1:
        return _Value(node)
    what = "sum" if summed else "max"
    shape = "x".join(str(w) for w in window if w > 1)
    name = walk.name(eqn, f"{what} pool {shape}")
    return _Value(walk.layer(node, name, "pool", _root(seen * size)))


def _convolved(walk, eqn, inputs):
    if not (isinstance(inputs[0], _Value) and isinstance(inputs[1], _Constant)):
        raise ValueError(walk.refusal(eqn, "its kernel depends on the input"))
    params, x = eqn.params, eqn.invars[0].aval
    if params["batch_group_count"] != 1:
        raise ValueError(walk.refusal(eqn, "batch groups are not supported"))
    numbers = params["dimension_numbers"]
    out_channel, in_channel, *window_axes = numbers.rhs_spec
    kernel = jnp.transpose(inputs[1].full(), (*window_axes, in_channel, out_channel))
    *window, c_in, c_out = kernel.shape
    sizes = tuple(x.shape[axis] for axis in numbers.lhs_spec[2:])
    groups, strides = params["feature_group_count"], params["window_strides"]
    geometry = _cheapest(
        window, sizes, strides, params["rhs_dilation"], params["lhs_dilation"], params["padding"]
    )
    norm = functools.partial(conv_gram_iteration, groups=groups, **geometry, **walk.options)
    shape = "x".join(map(str, window)) + f" {c_in * groups} -> {c_out}"
    shape += f", stride {'x'.join(map(str, strides))}" if max(strides) > 1 else ""
    shape += f", {groups} groups" if groups > 1 else ""
    linear = _Linear("conv", walk.name(eqn, shape), kernel, numbers.out_spec[1], norm)
    return _Value(walk.flush(inputs[0]), linear)


def _cheapest(window, sizes, strides, dilation, lhs_dilation, padding):
    """Options of `conv_gram_iteration`: the torus of this size, or the grid for all sizes."""
    if max(lhs_dilation) > 1:  # zeros between the points, an isometry, then a plain convolution
        return dict(padding="any")
    grid = [-(-(n + max(0, *p)) // s) for n, p, s in zip(sizes, padding, strides)]
    everywhere = [1 if k == 1 else max(32, 16 * (k - 1)) for k in window]
    if math.prod(grid) > 4 * math.prod(everywhere):
        return dict(padding="any", strides=strides, dilation=dilation)
    return dict(
        padding=tuple((max(0, a), max(0, b)) for a, b in padding),
        input_size=sizes,
        strides=strides,
        dilation=dilation,
    )


def _multiplied(walk, eqn, inputs):
    (contract, batch) = eqn.params["dimension_numbers"]
    if all(isinstance(i, _Value) for i in inputs):
        raise ValueError(walk.refusal(eqn, "a product of two such values has no constant"))
    if batch[0]:
        raise ValueError(walk.refusal(eqn, "batched products are not supported"))
    side = 1 if isinstance(inputs[0], _Value) else 0
    axes = contract[side]
    matrix = inputs[side].full()
    free = [axis for axis in range(matrix.ndim) if axis not in axes]
    shape = [matrix.shape[axis] for axis in free]
    rows = math.prod(matrix.shape[axis] for axis in axes)
    matrix = jnp.transpose(matrix, (*axes, *free)).reshape(rows, math.prod(shape))
    # The axis of the output that the last free axis of the matrix becomes, if it has just one.
    last = len(eqn.outvars[0].aval.shape) - 1 if side == 1 else 0
    axis = last if len(free) == 1 else -1
    norm = functools.partial(gram_iteration, **walk.options)
    name = walk.name(eqn, f"{rows} -> {math.prod(shape)}")
    return _Value(walk.flush(inputs[1 - side]), _Linear("dense", name, matrix, axis, norm))


def _root(count) -> float:
    return math.sqrt(count) * (1 + 2**-22)


def _activation_slope(name, inner, inputs):
    """The largest slope of a `jax.nn` activation, recognized by its whole program; else None."""
    if name not in _ACTIVATIONS or not isinstance(inner, core.ClosedJaxpr):
        return None
    value, *rest = inputs
    if not isinstance(value, _Value) or not all(isinstance(i, _Constant) for i in rest):
        return None
    slope, of_argument = _ACTIVATIONS[name]
    avals = [v.aval for v in inner.jaxpr.invars]
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
    try:
        traced = jax.make_jaxpr(getattr(jax.nn, name))(*like)
    except TypeError:  # a function of that name with other arguments
        return None
    if str(traced.jaxpr.eqns[0].params.get("jaxpr")) != str(inner):
        return None
    for constant in rest if of_argument else []:
        slope = jnp.maximum(slope, jnp.max(of_argument(jnp.asarray(constant.array, jnp.float32))))
    return slope


def _elementwise(walk, eqn, inputs):
    slope = _SLOPES[eqn.primitive.name]
    node = walk.flush(inputs[0])
    if slope != 1:
        node = walk.layer(node, walk.name(eqn, eqn.primitive.name), "activation", slope)
    return _Value(node)


def _converted(walk, eqn, inputs):
    dtype = eqn.outvars[0].aval.dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(walk.refusal(eqn, f"{dtype} rounds too much for a bound"))
    return _keep(walk, eqn, inputs)


_LOGIC = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite", "argmax", "argmin"}
_SLOPES = {
    "abs": 1, "tanh": 1, "sin": 1, "cos": 1, "atan": 1, "asinh": 1, "logistic": 0.25, "erf": 1.1284
}  # fmt: skip


def _if_positive(argument):
    return jnp.where(argument > 0, 1.0, jnp.inf)


_ACTIVATIONS = {  # the largest slope, rounded up, and the slope that an argument may lead to
    "silu": (1.1, None),
    "mish": (1.09, None),
    "softplus": (1.0, None),
    "log_sigmoid": (1.0, None),
    "soft_sign": (1.0, None),
    "selu": (1.7581, None),
    "hard_tanh": (1.0, None),
    "squareplus": (1.0, _if_positive),
    "celu": (1.0, _if_positive),
    "elu": (1.0, jnp.abs),
    "leaky_relu": (1.0, jnp.abs),
}
_BROADCASTING = ("add", "add_any", "sub", "mul", "div", "max", "min", "clamp", "select_n")
_CALLS = (
    "jit",
    "pjit",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat2",
    "closed_call",
)
_KEEP = (
    "reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "copy", "copy_p",
    "reduce_max", "reduce_min", "sort", "stop_gradient",
)  # fmt: skip
_RULES = {
    "add": _affine,
    "add_any": _affine,
    "sub": _affine,
    "neg": _negated,
    "mul": _product,
    "div": _quotient,
    "max": _joined,
    "min": _joined,
    "concatenate": _joined,
    "stack": _joined,
    "tile": _repeated,
    "dynamic_slice": _sliced,
    "clamp": _clamped,
    "select_n": _selected,
    "broadcast_in_dim": _broadcast,
    "reduce_sum": _reduced_sum,
    "pad": _padded,
    "reduce_window_max": functools.partial(_pooled, summed=False),
    "reduce_window_min": functools.partial(_pooled, summed=False),
    "reduce_window_sum": functools.partial(_pooled, summed=True),
    "conv_general_dilated": _convolved,
    "dot_general": _multiplied,
    "convert_element_type": _converted,
    **dict.fromkeys(_KEEP, _keep),
    **dict.fromkeys(_SLOPES, _elementwise),
}
