"""Flax modules that hold parameters and delegate, and the two ways to make weights of them once."""

import functools
import operator
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lipjax import _checks
from lipjax.layers import activations, forms, lmi
from lipjax.typing import Array, Bound


class Weights(nnx.Variable):
    """What a constrained layer multiplies with: its parameters after the constraint."""


class Constrained(nnx.Module):
    """A layer in one of two states: free parameters, or the weights made of them.

    Subclasses define the pure functions of one layer: `constrain(params) -> weights`,
    `apply(weights, x) -> y`, `freeze_params(params) -> weights`, `bound_weights(weights) -> Bound`.
    A call on free parameters constrains them first; use `lipjax.nn.constrain` to do that once per
    step and `lipjax.nn.freeze` to do it once for evaluation.
    """

    def __init__(self, params):
        self.free = nnx.Param(params)
        self.explicit = nnx.data(None)

    def __call__(self, x: Array) -> Array:
        """The layer on a batch, `float[..., *shape]`."""
        return self.apply(self.weights(), _checks.array(x=x))

    def weights(self):
        """The weights, made of the parameters if they are not there yet."""
        if self.explicit is not None:
            return self.explicit.get_value()
        if self.free is None:
            raise ValueError(
                f"this {type(self).__name__} gave its parameters to the module that was made of it; "
                "call that one."
            )
        return self.constrain(self.free.get_value())

    def constrain_shared(self, params, mesh, axis):
        """As `constrain`, for a mesh of devices that hold the parameters; see `Stack`."""
        del mesh, axis
        return self.constrain(params)

    def bound(self) -> Bound:
        """Upper bound on the layer's l2 Lipschitz constant, proved in float64 on the host."""
        return self.bound_weights(self.weights())

    def matrices(self, weights, shape: tuple[int, ...]) -> lmi.Matrices:
        """The layer with these weights as matrices, for one example of that shape.

        Raises:
            ValueError: for a module that is made of several layers; each has its own.
        """
        if not isinstance(weights, lmi.KINDS):
            raise self._no_matrices()
        if len(shape) == 1:
            return lmi.of_dense(weights)
        options = {
            name: getattr(self, name) for name in ("padding", "order") if hasattr(self, name)
        }
        if isinstance(weights, forms.Linear):
            options["strides"] = getattr(self, "strides", 1)
        return lmi.of_conv(weights, shape[:-1], **options)

    def unmixed(self, weights):
        """The layer inside of mixes with the input, its weights, and what multiplies its output."""
        return self, weights, 1.0

    def _no_matrices(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} is no linear, residual or sandwich layer, or made of several "
            "layers; prove its layers one by one."
        )

    def _set(self, weights) -> None:
        self.explicit = Weights(weights)
        self.free = None


def key_of(rngs) -> Array:
    """The next key for parameters."""
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(
            f"rngs is {rngs!r}; it must be flax.nnx.Rngs of a seed, such as nnx.Rngs(0)."
        )
    try:
        return rngs.params()
    except AttributeError as error:
        raise ValueError(
            f"rngs has the streams {list(rngs)}; it must have 'params' or 'default', as nnx.Rngs(0) has."
        ) from error


def refuse_classes(**named) -> None:
    """That each holds layers, not classes that would make one."""
    for name, layers in named.items():
        for layer in layers:
            if isinstance(layer, type):
                kind = layer.__name__
                raise ValueError(f"{name} has the class {kind}; pass a layer, {kind}(...).")


def take_params(**named):
    """The free parameters of layers, which from now on belong to the module that is made of them.

    Raises:
        ValueError: for one that is no layer, twice the same one, holds weights or gave its own away.
    """
    refuse_classes(**named)
    ((name, layers),) = named.items()
    for i, layer in enumerate(layers):
        kind = type(layer).__name__
        if not isinstance(layer, Constrained):
            raise ValueError(
                f"{name} has {kind}; it must be a layer of lipjax.nn, such as SLLDense."
            )
        if layer.free is None:
            why = "but weights" if layer.explicit is not None else "which it gave away"
            raise ValueError(
                f"{name} has {kind} that holds no free parameters, {why}; pass a new one."
            )
        if any(layer is other for other in layers[:i]):
            raise ValueError(
                f"{name} has the same layer ({kind}) twice; pass a new one for each place."
            )
    params = [layer.free.get_value() for layer in layers]
    for layer in layers:
        layer.free = None
    return params


def constrain(
    module: nnx.Module, *, mesh: jax.sharding.Mesh | None = None, axis: str | None = None
) -> nnx.Module:
    """A copy of a module with weights in place of free parameters; differentiable.

    Use it as the `constrain` of `lipjax.training.make_step`: the constraint is then computed once
    per step, and its gradient pulled back once, however many micro-batches there are.

    Args:
        module: With free parameters.
        mesh: If several devices train on parts of a batch each, every one of them would compute all
            the weights. With their mesh, and parameters that all of them hold, each computes those of
            its part of the layers of a `Stack`, and sends them to the others.
        axis: The axis of the mesh that holds those devices.

    Raises:
        ValueError: for a module that holds weights in place of parameters already; training those
            would lose the constraint. For an axis that the mesh does not have.

    >>> from lipjax.nn import SLLDense
    >>> stack = Stack(lambda rngs: SLLDense(4, 8, rngs=rngs), 3, rngs=nnx.Rngs(0))
    >>> auto = (jax.sharding.AxisType.Auto,)
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
    >>> constrain(stack, mesh=mesh, axis="data").weights().step.shape
    (3, 8)
    """
    _require_free(module, "constrain")
    if (mesh is None) != (axis is None) or (mesh is not None and axis not in mesh.shape):
        names = None if mesh is None else mesh.axis_names
        raise ValueError(f"axis is {axis!r}; it must be one of the mesh's axes, {names}.")
    if mesh is None:
        return _with_weights(module, lambda layer: layer.constrain(layer.free.get_value()))
    return _with_weights(
        module, lambda layer: layer.constrain_shared(layer.free.get_value(), mesh, axis)
    )


def freeze(module: nnx.Module) -> nnx.Module:
    """A copy of a module with weights computed in float64 on the host: for evaluation.

    Steps and class vectors come out on the sound side of rounding, kernels rounded; `bound` proves
    what the result has. Not for use under jit.

    Layers that divide by a bound computed in float32 leave room for its rounding in training, which this
    takes back: the values of a layer of 64 features or channels move by about 1e-3 of themselves
    (spectral rescaling; 1e-2 its convolution), 1e-3 (normalized), 1e-4 (CPL, SLL, AOL, SOC), of others
    by less than 1e-5.

    Raises:
        ValueError: for a module that holds weights in place of parameters already.
    """
    _require_free(module, "freeze")
    return _with_weights(module, lambda layer: layer.freeze_params(layer.free.get_value()))


def rounded(module: nnx.Module, dtype) -> nnx.Module:
    """A copy of a frozen module with the weights that a smaller type holds, kept in their own type.

    An orthogonal matrix cast to bfloat16 has norm 1.002, and thirty of them in a row 1.07: the bound
    of the network before the cast says nothing about the one after. `bound` of this copy does; it is
    the one to certify with where weights are stored or multiplied in that type. The layers themselves
    refuse inputs in less than float32, whose rounding no bound here covers.

    Args:
        module: Frozen, see `freeze`.
        dtype: `jnp.bfloat16`, `jnp.float16` or any smaller floating type of JAX.

    Raises:
        ValueError: for a module that is not frozen, or a dtype that is not floating.

    >>> from lipjax.nn import CayleyDense
    >>> layer = freeze(CayleyDense(16, 16, rngs=nnx.Rngs(0)))
    >>> bool(layer.bound().value < 1 + 1e-6 < rounded(layer, jnp.bfloat16).bound().value < 1.01)
    True
    """
    try:
        floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"dtype is {dtype!r}; it must be a floating type such as jnp.bfloat16.")
    _require_modules(module)
    module = nnx.clone(module)
    for _, layer in nnx.iter_modules(module):
        if not isinstance(layer, Constrained):
            continue
        if layer.free is not None:
            raise ValueError(
                f"module holds free parameters ({type(layer).__name__}); pass what nn.freeze returns."
            )
        if layer.explicit is not None:
            weights = jax.tree.map(lambda w: _through(w, dtype), layer.explicit.get_value())
            layer.explicit = Weights(weights)
    return module


def _through(array, dtype):
    if jnp.iscomplexobj(array):
        return jax.lax.complex(_through(array.real, dtype), _through(array.imag, dtype))
    return array.astype(dtype).astype(array.dtype)


def _require_modules(module) -> None:
    if not any(isinstance(part, nnx.Module) for _, part in nnx.iter_modules(module)):
        raise ValueError(f"module is {module!r}; it must be a flax.nnx.Module, or hold some.")


def _require_free(module, name: str) -> None:
    _require_modules(module)
    if isinstance(module, Constrained) and module.free is None and module.explicit is None:
        raise ValueError(
            f"module is {type(module).__name__}, which gave its parameters to the module that was made "
            f"of it; {name} takes that one."
        )
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Constrained) and layer.explicit is not None:
            raise ValueError(
                f"module holds weights already ({type(layer).__name__}); {name} takes a module with "
                "free parameters, the one that is or was trained."
            )


def _with_weights(module, make: Callable):
    module = nnx.clone(module)
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Constrained) and layer.free is not None:
            layer._set(make(layer))
    return module


class Stack(Constrained):
    """`depth` layers of one kind and shape in a row, with parameters stacked on axis 0.

    The constraint of all of them is one batched program, and the forward pass one scan.

    Args:
        make: Builds one layer from random number generators.
        depth: Number of layers, at least 1.
        between: A 1-Lipschitz activation between layers and after the last (see
            `lipjax.layers.activations`; one with a larger constant is divided by it), or None.
        unroll: Whether to write the layers out instead of looping. None decides by backend: on CPUs
            XLA runs convolutions inside loops many times slower.
        rngs: Random number generators.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lipjax.nn import SLLDense
        >>> stack = Stack(lambda rngs: SLLDense(4, 8, rngs=rngs), 3, rngs=nnx.Rngs(0))
        >>> stack(jnp.ones((2, 4))).shape
        (2, 4)
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], Constrained],
        depth: int,
        *,
        between=None,
        unroll: bool | None = None,
        rngs: nnx.Rngs,
    ):
        _checks.integer(1, depth=depth)
        if isinstance(make, nnx.Module):
            raise ValueError(
                f"make is a {type(make).__name__}; it must be a function that builds one, as in "
                f"lambda rngs: nn.{type(make).__name__}(..., rngs=rngs)."
            )
        layers = [make(rngs) for _ in range(depth)]
        if not isinstance(layers[0], Constrained):
            raise ValueError(
                f"make builds {type(layers[0]).__name__}; it must build a constrained layer of "
                "lipjax.nn, such as SLLDense. Activations go into `between`."
            )
        _check_alike(layers)
        if isinstance(between, Constrained):
            raise ValueError(
                f"between is a {type(between).__name__}, which has parameters; it belongs into make, as "
                f"in lambda rngs: nn.Chain(layer, nn.{type(between).__name__}(...))."
            )
        super().__init__(_stack(take_params(make=layers)))
        self.layer = layers[0]
        self.depth = depth
        self.between = None if between is None else activations.named(between)
        self.unroll = unroll

    def constrain(self, params):
        """All layers' weights at once."""
        return jax.vmap(self.layer.constrain)(params)

    def constrain_shared(self, params, mesh, axis):
        """As `constrain`; each device along the axis makes the weights of its part of the layers."""
        missing = -self.depth % mesh.shape[axis]
        filled = jax.tree.map(lambda p: jnp.concatenate([p, *[p[-1:]] * missing]), params)
        part = PartitionSpec(axis)
        # Nothing is communicated, so there is nothing to check; the rules of custom derivatives inside
        # are written for arrays without the types of such a check.
        make = jax.shard_map(
            jax.vmap(self.layer.constrain),
            mesh=mesh,
            in_specs=part,
            out_specs=part,
            check_vma=False,
        )
        everywhere = NamedSharding(mesh, PartitionSpec())
        weights = jax.lax.with_sharding_constraint(make(filled), everywhere)
        return jax.tree.map(lambda w: w[: self.depth], weights)

    def apply(self, weights, x):
        """The layers in a row."""
        between = None if self.between is None else activations.one_lipschitz(self.between)

        def step(x, weights):
            y = self.layer.apply(weights, x)
            if y.shape != x.shape:
                raise ValueError(
                    f"make builds layers from shape {x.shape} to {y.shape}; in a Stack the shape "
                    "stays. Call layers of different widths one after the other."
                )
            x = y
            return (x if between is None else between(x)), None

        unroll = jax.default_backend() == "cpu" if self.unroll is None else self.unroll
        if self.depth == 1:  # XLA's CPU backend computes convolutions in a loop of one turn slowly
            return step(x, jax.tree.map(operator.itemgetter(0), weights))[0]
        return jax.lax.scan(step, x, weights, unroll=self.depth if unroll else 1)[0]

    def freeze_params(self, params):
        """All layers' weights, each in float64."""
        return _stack([self.layer.freeze_params(p) for p in _unstack(params, self.depth)])

    def matrices(self, weights, shape) -> lmi.Matrices:
        """None: a stack is made of several layers."""
        raise self._no_matrices()

    def bound_weights(self, weights):
        """The product of the layers' bounds."""
        total = Bound(1.0, "exact")
        for one in _unstack(weights, self.depth):
            total = total * self.layer.bound_weights(one)
        return total


def _check_alike(layers):
    """Of the layers only the first is kept, so the others must be as it is."""
    shapes = jax.tree.map(jnp.shape, layers[0].free and layers[0].free.get_value())
    for i, layer in enumerate(layers[1:], start=1):
        same = jax.tree.map(jnp.shape, layer.free and layer.free.get_value()) == shapes
        if not same or not _alike(layers[0], layer):
            raise ValueError(
                f"make builds a first layer and a layer {i} that differ in shape or options; in a Stack "
                "all are alike. Call layers that differ one after the other, or use lipjax.nn.Chain."
            )


def _alike(a, b) -> bool:
    """Whether two options, or all of two modules, are the same; functions are if their code is."""
    if type(a) is not type(b):
        return False
    if isinstance(a, nnx.Variable):
        return True  # parameters may differ
    if isinstance(a, nnx.Module | activations.Activation):
        names = {name for name in vars(a) if not name.startswith("_")}
        others = {name for name in vars(b) if not name.startswith("_")}
        return names == others and all(_alike(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, functools.partial):
        return _alike((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, types.FunctionType):
        cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (a, b)]
        return a is b or (
            a.__code__ == b.__code__
            and _alike(cells[0], cells[1])
            and _alike((a.__defaults__, a.__kwdefaults__), (b.__defaults__, b.__kwdefaults__))
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return a is b or bool(np.all(a == b))


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree, depth):
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(depth)]
