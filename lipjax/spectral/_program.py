"""Walks through a traced program and writes down how its values depend on the input.

What an operation does to the bounds is said by the table of rules in `lipjax.spectral._rules`.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from lipjax._numerics import is_zero, round_up, safe_norm, unit_roundoff
from lipjax.spectral.gram import any_nonzero
from lipjax.typing import Array


class Constant(NamedTuple):
    """A value that does not depend on the input; `array` broadcasts to `shape`."""

    array: Any
    shape: tuple[int, ...]

    def full(self):
        return jnp.broadcast_to(self.array, self.shape)


class Linear(NamedTuple):
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


class Value(NamedTuple):
    """A value that depends on the input: its bound is that of node `node`, then `linear`.

    Attributes:
        cut: Of a slice, the variable that it was cut from and how often each entry of it is here.
    """

    node: int
    linear: Linear | None = None
    cut: tuple | None = None


class Decision(NamedTuple):
    """A truth value or integer that depends on the input."""

    why: str


class Walk:
    """Walks through a program; bounds are nodes of a small one: products, sums, hypotenuses.

    Args:
        rules: `(walk, eqn, inputs) -> Value` for each operation by its name.
        slope: `(name, program, inputs)`: the slope of a call that is a known activation, or None.
        options: Of `gram_iteration`.
        dtype: Of the bounds.
    """

    def __init__(self, rules, slope, options, dtype):
        self.rules, self.slope, self.options, self.dtype = rules, slope, options, dtype
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
            norm = jnp.where(norm > 0, floored(round_up(norm).astype(self.dtype)), 0 * norm)
        self.layers.append((name, kind, norm.astype(self.dtype)))
        return self.record("layer", node, len(self.layers) - 1)

    def flush(self, value: Value) -> int:
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
                value = jnp.where((before == 0) | (norm == 0), product, floored(product))
            elif kind == "sum":
                value = round_up(sum(values[i] for i in args), len(args))
            elif kind == "max":
                value = jnp.max(jnp.stack([values[i] for i in args]))
            else:
                value = round_up(safe_norm(jnp.stack([values[i] for i in args])), len(args) + 4)
            values.append(value)
        return values[last]

    def run(self, jaxpr, consts, args):
        """The values of the outputs of a jaxpr."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

        def read(var):
            if isinstance(var, core.Literal):
                return Constant(jnp.asarray(var.val, var.aval.dtype), var.aval.shape)
            return known[var]

        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            known.update(zip(eqn.outvars, self.apply(eqn, inputs)))
        # A variable has one value in this run alone: cuts of it mean nothing outside.
        outs = [read(v) for v in jaxpr.outvars]
        return [v._replace(cut=None) if isinstance(v, Value) else v for v in outs]

    def apply(self, eqn, inputs):
        name, params = eqn.primitive.name, eqn.params
        if all(isinstance(i, Constant) for i in inputs) and name not in CALLS:
            return self.constant(eqn, inputs)
        inner = next((params[k] for k in ("jaxpr", "call_jaxpr") if k in params), None)
        if name in CALLS:
            slope = self.slope(params.get("name"), inner, inputs)
            if slope is not None:
                ((value, var),) = (p for p in zip(inputs, eqn.invars) if isinstance(p[0], Value))
                copies = math.prod(eqn.outvars[0].aval.shape) // max(1, math.prod(var.aval.shape))
                node = self.flush(self.copied(eqn, value, copies))
                if isinstance(slope, jax.Array) or slope != 1:
                    node = self.layer(node, self.name(eqn, params["name"]), "activation", slope)
                return [Value(node)]
            if inner is None:
                raise ValueError(self.refusal(eqn, "its program is not visible"))
            if isinstance(inner, core.ClosedJaxpr):
                consts = [Constant(c, jnp.shape(c)) for c in inner.consts]
                return self.run(inner.jaxpr, consts, inputs)
            return self.run(inner, [], inputs)
        if name == "scan":
            return self.unrolled(eqn, inputs)
        if any(isinstance(i, Decision) for i in inputs):
            if name in LOGIC:
                return [Decision(name)]
            raise ValueError(self.refusal(eqn, "it decides by a comparison of the input"))
        if name in LOGIC:
            return [Decision(name)]
        if name in ("split", "unstack"):
            return [Value(self.flush(inputs[0]))] * len(eqn.outvars)
        if name == "top_k":  # sorting moves no two arrays apart
            return [Value(self.flush(inputs[0])), Decision(name)]
        if name == "cond":
            return self.branched(eqn, inputs)
        if name not in self.rules or len(eqn.outvars) > 1:
            raise ValueError(self.refusal(eqn, "its Lipschitz constant is not known here"))
        if name in BROADCASTING:  # a scalar that meets an array is copied to all its entries
            out = eqn.outvars[0].aval.shape
            inputs = [
                self.copied(eqn, i, math.prod(out) // max(1, math.prod(v.aval.shape)))
                for i, v in zip(inputs, eqn.invars)
            ]
        return [self.rules[name](self, eqn, inputs)]

    def branched(self, eqn, inputs):
        """A branch chosen by a constant: no more than the largest of all branches."""
        outs = []
        for branch in eqn.params["branches"]:
            consts = [Constant(c, jnp.shape(c)) for c in branch.consts]
            outs.append(self.run(branch.jaxpr, consts, inputs[1:]))
        return [self.largest(eqn, inputs[0].array, column) for column in zip(*outs)]

    def largest(self, eqn, index, values):
        """One of these values, whichever the constant `index` picks."""
        if all(isinstance(v, Constant) for v in values):
            array = lax.select_n(jnp.clip(index, 0, len(values) - 1), *(v.full() for v in values))
            return Constant(array, values[0].shape)
        if any(isinstance(v, Decision) for v in values):
            return next(v for v in values if isinstance(v, Decision))
        return Value(self.record("max", *(self.flush(v) for v in values if isinstance(v, Value))))

    def unrolled(self, eqn, inputs):
        """A loop of known length, one pass of its body after the other."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        first, carries = _loop_counts(eqn.params)
        fixed, carry, rows = (
            inputs[:first],
            inputs[first : first + carries],
            inputs[first + carries :],
        )
        consts = [Constant(c, jnp.shape(c)) for c in body.consts]
        steps = range(length)
        results = {}
        for i in reversed(steps) if eqn.params["reverse"] else steps:
            now = [self.row(row, i) for row in rows]
            out = self.run(body.jaxpr, consts, [*fixed, *carry, *now])
            carry, results[i] = out[:carries], out[carries:]
        if not length:
            shapes = [v.aval for v in eqn.outvars[carries:]]
            empty = (Constant(jnp.zeros(a.shape, a.dtype), a.shape) for a in shapes)
            return [*carry, *empty]
        columns = zip(*(results[i] for i in steps))
        return [*carry, *(self.stacked(column) for column in columns)]

    def row(self, value, i):
        """One entry of the leading axis."""
        if isinstance(value, Constant):
            return Constant(value.full()[i], value.shape[1:])
        return Value(self.flush(value)) if isinstance(value, Value) else value

    def stacked(self, values):
        """Values side by side: no more than their hypotenuse."""
        if all(isinstance(v, Constant) for v in values):
            array = jnp.stack([v.full() for v in values])
            return Constant(array, array.shape)
        if any(isinstance(v, Decision) for v in values):
            return next(v for v in values if isinstance(v, Decision))
        nodes = [self.flush(v) for v in values if isinstance(v, Value)]
        return Value(self.record("hypot", *nodes))

    def copied(self, eqn, value, copies):
        """The value seen that many times; constants as they are."""
        if copies == 1 or not isinstance(value, Value):
            return value
        name = self.name(eqn, f"{copies} copies")
        return Value(self.layer(self.flush(value), name, "copy", root(copies)))

    def constant(self, eqn, inputs):
        """Evaluates an operation on constants; a broadcast keeps its small operand."""
        if eqn.primitive.name == "broadcast_in_dim" and len(inputs) == 1:
            shape, where = eqn.params["shape"], eqn.params["broadcast_dimensions"]
            if inputs[0].array.shape == inputs[0].shape:
                small = [1] * len(shape)
                for axis, size in zip(where, inputs[0].shape):
                    small[axis] = size
                return [Constant(jnp.reshape(inputs[0].array, small), tuple(shape))]
        indices = all(jnp.issubdtype(v.aval.dtype, jnp.integer) for v in eqn.outvars)
        with jax.ensure_compile_time_eval() if indices else contextlib.nullcontext():
            out = eqn.primitive.bind(*(i.full() for i in inputs), **eqn.params)
        out = out if eqn.primitive.multiple_results else [out]
        return [Constant(o, jnp.shape(o)) for o in out]

    def name(self, eqn, what) -> str:
        scope = str(eqn.source_info.name_stack)
        return f"{scope}: {what}" if scope else what

    def refusal(self, eqn, why) -> str:
        shapes = ", ".join(str(v.aval.shape) for v in eqn.invars)
        return (
            f"fn contains the operation {eqn.primitive.name!r} on values of shape {shapes} that "
            f"depend on x: {why}. Bound that part by itself and multiply."
        )

    def scaled(self, eqn, value: Value, factor: Constant) -> Value:
        """The value times a constant, folded into a linear map whose channels it scales."""
        small = factor.array
        shape = (1,) * (len(factor.shape) - small.ndim) + small.shape
        linear = value.linear
        if linear is not None and all(
            n == 1 for axis, n in enumerate(shape) if axis != linear.axis
        ):
            kernel = linear.kernel
            small = small.reshape(-1).astype(kernel.dtype)
            factor, size = largest_entry(small), jnp.max(jnp.abs(kernel))
            floor = 2 * kernel.size * float(jnp.finfo(kernel.dtype).tiny)
            lost = jnp.where(linear.lost == 0, 0, round_up(linear.lost * factor, 2))
            lost = lost + floor * (1 + size + jnp.where(any_subnormal(kernel), factor, 0))
            kernel = kernel * jnp.broadcast_to(small, kernel.shape)
            folded = linear._replace(kernel=kernel, folds=linear.folds + 1, lost=lost)
            return value._replace(linear=folded)
        factor = largest_entry(small)
        node = self.flush(value)
        if isinstance(factor, jax.core.Tracer) or float(factor) != 1:
            node = self.layer(node, self.name(eqn, "times a constant"), "scale", round_up(factor))
        return Value(node)


def _loop_counts(params):
    """How many operands of a scan are the same in every pass, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    same, carried, _ = params["ft_in"].unpack()  # JAX 0.12 keeps their trees
    return len(same), len(carried)


def floored(value):
    """At least the smallest normal number: products below it come out as zero."""
    return jnp.maximum(value, float(jnp.finfo(value.dtype).tiny))


def largest_entry(constant):
    """The largest absolute entry, at least the smallest normal number unless all bits are zero."""
    constant = jnp.asarray(constant)
    largest = jnp.max(jnp.abs(constant))
    if constant.dtype not in (jnp.float32, jnp.float64):
        return largest.astype(jnp.float32)
    axes = tuple(range(constant.ndim))
    return jnp.where(any_nonzero([constant], axes), floored(largest), largest)


def any_subnormal(array):
    """Whether an entry is below the normal range and not zero: products may read it as zero."""
    normal = jnp.abs(array) >= float(jnp.finfo(array.dtype).tiny)
    return jnp.any(~(is_zero(array) | normal))


def root(count) -> float:
    return math.sqrt(count) * (1 + 2**-22)


LOGIC = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite", "argmax", "argmin"}
BROADCASTING = ("add", "add_any", "sub", "mul", "div", "max", "min", "clamp", "select_n")
CALLS = (
    "jit",
    "pjit",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat2",
    "closed_call",
)
