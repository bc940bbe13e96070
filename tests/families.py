"""The families: one row buys a layer, a bound or a certificate every test of its family.

The tests are in soundness_test, transforms_test, lowering_test and sharding_test.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lipjax import margin
from lipjax.layers import (
    aol,
    bjorck,
    block,
    cayley,
    cpl,
    forms,
    head,
    householder,
    lmi,
    normalized,
    reflector,
    rescaled,
    sandwich,
    skew,
    sll,
    triangular,
)
from lipjax.spectral import (
    conv_gram_iteration,
    conv_kernel_bound,
    conv_rescale,
    gram_iteration,
    network_bound,
    rescale,
)
from tests import oracles


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 1-Lipschitz layer.

    Attributes:
        name: What the test is called.
        init: `key -> params`.
        constrain: `params -> weights`.
        freeze: The same, for evaluation.
        apply: `(weights, x) -> y` for one example.
        bound: `weights -> Bound`.
        shape: Shape of one example.
        matrices: `weights -> lmi.Matrices` for residual layers.
        broken: `weights -> weights` that are wrong in the way the layer could be: the negative
            control, which every soundness test must catch.
        activation: Whether `apply` takes `activation=`.
        tight: The largest Jacobian norm for orthonormal kernels is at least this.
        orthogonal: Whether the condition is met with equality, so that float32 weights miss it by
            their rounding and the proof is of the weights in float64.
        slack: How far above 1 the proved bound of frozen weights may be.
        frozen: How far the output of frozen weights may be from that of the constrained ones.
    """

    name: str
    init: Callable
    constrain: Callable
    freeze: Callable
    apply: Callable
    bound: Callable
    shape: tuple[int, ...]
    matrices: Callable | None
    broken: Callable
    activation: bool = True
    tight: float = 0.99
    orthogonal: bool = False
    slack: float = 1e-6
    frozen: float = 1e-4


def _longer_step(weights):
    """A T that is too small, as an underestimated norm or a misplaced epsilon gives."""
    return weights._replace(step=weights.step * 1.5)


def _larger_kernel(weights):
    return weights._replace(kernel=weights.kernel * 1.1)


def _residual(name, module, *, conv, padding="zero", **more):
    if conv:
        apply = functools.partial(module.apply_conv, padding=padding)
        return Layer(
            name,
            lambda key: module.init_conv(key, 3, 4),
            module.constrain_conv,
            module.freeze_conv,
            apply,
            module.bound,
            (5, 6, 3),
            functools.partial(lmi.of_conv, input_size=(3, 4), padding=padding),
            _longer_step,
            **more,
        )
    return Layer(
        name,
        lambda key: module.init_dense(key, 10, 7),
        module.constrain_dense,
        module.freeze_dense,
        module.apply_dense,
        module.bound,
        (10,),
        lmi.of_dense,
        _longer_step,
        **more,
    )


LAYERS = [
    _residual("sll_dense", sll, conv=False),
    _residual("sll_conv", sll, conv=True),
    _residual("sll_conv_circular", sll, conv=True, padding="circular"),
    _residual("cpl_dense", cpl, conv=False),
    _residual("cpl_conv", cpl, conv=True),
    _residual("cpl_conv_circular", cpl, conv=True, padding="circular"),
    Layer(
        "aol_dense",
        lambda key: aol.init_dense(key, 10, 7),
        aol.constrain_dense,
        aol.freeze_dense,
        aol.apply_dense,
        aol.bound,
        (10,),
        None,
        _larger_kernel,
        False,
    ),
    Layer(
        "aol_dense_wide",
        lambda key: aol.init_dense(key, 6, 9),
        aol.constrain_dense,
        aol.freeze_dense,
        aol.apply_dense,
        aol.bound,
        (6,),
        None,
        _larger_kernel,
        False,
    ),
    Layer(
        "aol_conv",
        lambda key: aol.init_conv(key, 3, 4),
        aol.constrain_conv,
        aol.freeze_conv,
        aol.apply_conv,
        aol.bound,
        (5, 6, 3),
        None,
        _larger_kernel,
        False,
    ),
    Layer(
        "rescaled_dense",
        lambda key: rescaled.init_dense(key, 10, 7),
        rescaled.constrain_dense,
        rescaled.freeze_dense,
        rescaled.apply_dense,
        rescaled.bound,
        (10,),
        None,
        _larger_kernel,
        False,
    ),
    Layer(
        "rescaled_conv",
        lambda key: rescaled.init_conv(key, 3, 4),
        rescaled.constrain_conv,
        rescaled.freeze_conv,
        rescaled.apply_conv,
        rescaled.bound,
        (5, 6, 3),
        None,
        _larger_kernel,
        False,
        frozen=4e-3,
    ),
    Layer(
        "aol_conv_strided",
        lambda key: aol.init_conv(key, 4, 3),
        aol.constrain_conv,
        aol.freeze_conv,
        functools.partial(aol.apply_conv, strides=2, padding="circular"),
        aol.bound,
        (4, 6, 4),
        None,
        _larger_kernel,
        False,
    ),
]


def _contraction(name, module, shape, *, tight=0.99, frozen=5e-6, **options):
    """A dense contraction in the linear form."""
    return Layer(
        name,
        lambda key: module.init_dense(key, *shape),
        functools.partial(module.constrain_dense, **options),
        functools.partial(module.freeze_dense, **options),
        module.apply_dense,
        module.bound,
        shape[:1],
        lmi.of_dense,
        _larger_kernel,
        False,
        tight,
        True,
        frozen=frozen,
    )


def _spectral_conv(name, module, init):
    """A circular convolution with one matrix per frequency."""
    activation = {} if module is not sandwich else {"activation": "relu"}
    return Layer(
        name,
        init,
        functools.partial(module.constrain_conv, input_size=(4, 5)),
        functools.partial(module.freeze_conv, input_size=(4, 5)),
        functools.partial(module.apply_conv, **activation),
        module.bound,
        (4, 5, 3),
        None,
        _larger_kernel,
        False,
        0.99 if module is not sandwich else 0.5,
    )


def _as_residual(name, module, **options):
    """The residual form of a dense contraction."""

    def weights(make, params):
        return forms.as_residual(make(params), **options)

    return Layer(
        name,
        lambda key: module.init_dense(key, 10, 7),
        functools.partial(weights, module.constrain_dense),
        functools.partial(weights, module.freeze_dense),
        forms.residual_dense,
        forms.residual_bound,
        (10,),
        lmi.of_dense,
        _longer_step,
        orthogonal=True,
    )


def _conv_as_residual(name, module):
    """The residual form of a convolution that is a plain kernel."""

    def weights(make, params):
        return forms.as_residual(make(params))

    return Layer(
        name,
        lambda key: module.init_conv(key, 3, 4),
        functools.partial(weights, module.constrain_conv),
        functools.partial(weights, module.freeze_conv),
        forms.residual_conv,
        forms.residual_bound,
        (5, 6, 3),
        functools.partial(lmi.of_conv, input_size=(3, 4)),
        _longer_step,
        tight=0.95,
        orthogonal=True,
        slack=0.05,  # 2 * 1.01^2 - 1, of what the bound of the kernel may be
    )


def _sided(name, side):
    """AOL that scales what is not the smaller side."""
    shape = {"input": (10, 7), "output": (6, 9)}[side]
    return Layer(
        name,
        lambda key: aol.init_dense(key, *shape),
        functools.partial(aol.constrain_dense, side=side),
        functools.partial(aol.freeze_dense, side=side),
        aol.apply_dense,
        aol.bound,
        shape[:1],
        lmi.of_dense,
        lambda weights: weights._replace(kernel=weights.kernel * 2),  # it contracts isometries
        False,
        0.3,
    )


LAYERS += [
    _sided("aol_dense_inputs_of_a_tall_kernel", "input"),
    _sided("aol_dense_outputs_of_a_wide_kernel", "output"),
    _conv_as_residual("block_conv_residual", block),
    Layer(
        "block_conv_strided",
        lambda key: block.init_conv(key, 3, 4, kernel_size=3, strides=2),
        block.constrain_conv,
        block.freeze_conv,
        functools.partial(block.apply_conv, padding="circular"),
        block.bound,
        (4, 6, 3),
        None,
        _larger_kernel,
        False,
        0.95,
        True,
        slack=0.01,
    ),
    _contraction("normalized_dense", normalized, (10, 7), frozen=1e-4),
    _contraction("bjorck_dense", bjorck, (10, 7)),
    _contraction("bjorck_dense_wide", bjorck, (6, 9)),
    _contraction("cayley_dense", cayley, (10, 7)),
    _contraction("cayley_dense_wide", cayley, (6, 9)),
    _contraction("householder_dense", householder, (10, 7)),
    _contraction("reflector_dense", reflector, (10,)),
    _contraction("qr_dense", triangular, (10, 7), method="qr"),
    _contraction("cholesky_dense", triangular, (6, 9), method="cholesky"),
    _contraction("skew_dense", skew, (6, 9)),
    Layer(
        "normalized_conv",
        lambda key: normalized.init_conv(key, 3, 4),
        normalized.constrain_conv,
        normalized.freeze_conv,
        normalized.apply_conv,
        normalized.bound,
        (5, 6, 3),
        None,
        _larger_kernel,
        False,
        0.95,
    ),
    Layer(
        "skew_conv",
        lambda key: skew.init_conv(key, 3, 4),
        skew.constrain_conv,
        skew.freeze_conv,
        skew.apply_conv,
        skew.bound,
        (5, 6, 3),
        None,
        lambda weights: weights._replace(kernel=weights.kernel * 4),
        False,
    ),
    Layer(
        "block_conv",
        lambda key: block.init_conv(key, 3, 4),
        block.constrain_conv,
        block.freeze_conv,
        block.apply_conv,
        block.bound,
        (5, 6, 3),
        None,
        _larger_kernel,
        False,
        0.95,
        True,
        slack=0.01,
    ),
    _spectral_conv("cayley_conv", cayley, lambda key: cayley.init_conv(key, 3, 4)),
    _spectral_conv("reflector_conv", reflector, lambda key: reflector.init_conv(key, 3)),
    _spectral_conv("sandwich_conv", sandwich, lambda key: sandwich.init_conv(key, 3, 4)),
    Layer(
        "sandwich_dense",
        lambda key: sandwich.init_dense(key, 10, 7),
        sandwich.constrain_dense,
        sandwich.freeze_dense,
        sandwich.apply_dense,
        sandwich.bound,
        (10,),
        lmi.of_dense,
        _larger_kernel,
        True,
        0.5,
        True,
    ),
    _as_residual("bjorck_residual", bjorck),
    _as_residual(
        "cayley_residual", cayley, log_temperature=np.linspace(-2, 2, 7, dtype=np.float32)
    ),
]


def _mix(name, module, shape, **more):
    """One third of the input and two of a dense layer that keeps the shape."""
    logit, layer = -np.log(np.float32(2)), module.apply_dense

    def mixed(weights, x, **options):
        x = jnp.asarray(x)
        return forms.convex_mix(x, layer(weights, x, **options), jnp.asarray(logit, x.dtype))

    return Layer(
        name,
        lambda key: module.init_dense(key, *shape),
        module.constrain_dense,
        module.freeze_dense,
        mixed,
        module.bound,
        shape[:1],
        lambda weights: lmi.of_mix(lmi.of_dense(weights), 1 / 3),
        **more,
    )


LAYERS += [
    _mix(
        "convex_mix_inside",
        sll,
        (10, 7),
        broken=lambda weights: weights._replace(step=weights.step * 2.5),  # at 1.5 it still holds
    ),
    _mix(
        "convex_mix_linear",
        cayley,
        (10, 10),
        broken=lambda weights: weights._replace(kernel=-3 * weights.kernel),
        activation=False,
        tight=0.3,
        orthogonal=True,
    ),
    Layer(  # to one logit a head of unit vectors is a contraction
        "normalized_head_of_one_class",
        lambda key: head.init_dense(key, 10, 1),
        head.constrain_dense,
        head.freeze_dense,
        head.apply_dense,
        head.bound,
        (10,),
        None,
        _larger_kernel,
        False,
    ),
]


@dataclasses.dataclass(frozen=True)
class UpperBound:
    """A function of one array that is never below a truth about it.

    Attributes:
        name: What the test is called.
        fn: `array -> float[]`.
        truth: `array -> float`, exact, in float64.
        shape: Shape of one array.
        factor: For Gaussian arrays `fn` is at most this times the truth.
        broken: A wrong version that must be caught below the truth.
        orders: How many times it can be differentiated; the next time is an error.
    """

    name: str
    fn: Callable
    truth: Callable
    shape: tuple[int, ...]
    factor: float
    broken: Callable
    orders: int = 2


def _conv(padding, size, factor, **options):
    def fn(kernel):
        return conv_gram_iteration(
            kernel,
            padding=padding,
            input_size=None if padding == "any" else size,
            num_iters=5,
            **options,
        )

    actual = "circular" if padding == "any" else padding

    def truth(kernel):
        return oracles.norm(oracles.conv_matrix(kernel, size, padding=actual, **options))

    def broken(kernel):  # the norm of the reshaped kernel, which many libraries take
        return jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), ord=2)

    name = f"conv_gram_iteration_{padding}" + "".join(f"_{k}" for k in options)
    return UpperBound(name, fn, truth, (3, 3, 2, 2), factor, broken)


def _power_iteration(matrix):
    """Ten steps of power iteration: an estimate from below."""
    v = jnp.ones(matrix.shape[-1], matrix.dtype)
    for _ in range(10):
        v = matrix.T @ (matrix @ v)
        v = v / jnp.linalg.norm(v)
    return jnp.linalg.norm(matrix @ v)


BOUNDS = [
    UpperBound("gram_iteration", gram_iteration, oracles.norm, (12, 9), 1.01, _power_iteration),
    UpperBound(
        "gram_iteration_auto",
        functools.partial(gram_iteration, num_iters="auto"),
        oracles.norm,
        (9, 12),
        1.002,
        _power_iteration,
        orders=1,
    ),
    UpperBound(
        "network_bound",
        lambda w: network_bound(lambda x: 2 * jax.nn.relu(x @ w), jnp.ones((1, 12))).value,
        lambda w: 2 * oracles.norm(w),
        (12, 9),
        1.01,
        lambda w: 2 * _power_iteration(w),
        orders=1,
    ),
    UpperBound(
        "conv_kernel_bound",
        conv_kernel_bound,
        lambda k: oracles.norm(oracles.conv_matrix(k, 8, padding="circular")),
        (3, 3, 2, 2),
        1.4,
        lambda k: jnp.linalg.norm(k.reshape(-1, k.shape[-1]), ord=2),
    ),
    _conv("circular", 6, 1.01),
    _conv("zero", 6, 1.2),
    _conv("any", 12, 1.1),
    _conv("zero", 6, 1.6, strides=2),
]


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A function of one array whose result has norm at most 1.

    Attributes as in `UpperBound`; `norm` is that of the result.
    """

    name: str
    fn: Callable
    norm: Callable
    shape: tuple[int, ...]
    factor: float
    broken: Callable
    orders: int = 2


def _conv_norm(kernel):
    return oracles.norm(oracles.conv_matrix(kernel, 6, padding="circular"))


CONTRACTIONS = [
    Contraction(
        "rescale",
        rescale,
        oracles.norm,
        (12, 9),
        1.7,
        lambda w: w / jnp.sqrt(jnp.sum(jnp.square(w), 0, keepdims=True)),
    ),
    Contraction(
        "rescale_3",
        functools.partial(rescale, num_iters=3),
        oracles.norm,
        (9, 12),
        1.2,
        lambda w: w / _power_iteration(w),
    ),
    Contraction(
        "rescale_tightened",
        functools.partial(rescale, num_iters=2, tighten=True),
        oracles.norm,
        (12, 9),
        1.01,
        lambda w: w / _power_iteration(w),
        orders=1,
    ),
    Contraction(
        "conv_rescale_tightened",
        functools.partial(conv_rescale, num_iters=2, tighten=True),
        _conv_norm,
        (3, 3, 2, 3),
        1.1,
        lambda k: k / jnp.linalg.norm(k.reshape(-1, k.shape[-1]), ord=2),
        orders=1,
    ),
    Contraction(
        "conv_rescale",
        conv_rescale,
        _conv_norm,
        (3, 3, 2, 3),
        2.2,
        lambda k: k / jnp.linalg.norm(k.reshape(-1, k.shape[-1]), ord=2),
    ),
]


def by_name(rows):
    """Parameters of `pytest.mark.parametrize`."""
    import pytest

    return [pytest.param(row, id=row.name) for row in rows]


OTHER_SHAPES = {
    "sll_conv_circular", "cpl_conv_circular", "aol_dense_wide", "aol_conv_strided",
    "aol_dense_inputs_of_a_tall_kernel", "aol_dense_outputs_of_a_wide_kernel", "block_conv_strided",
    "bjorck_dense_wide", "cayley_dense_wide", "cayley_residual", "convex_mix_inside",
}  # fmt: skip
"""Layers that stand above in another shape, padding or form."""


def one_of_each(rows):
    """The same; other shapes of a layer run in the slow form."""
    import pytest

    marks = [[pytest.mark.slow] if row.name in OTHER_SHAPES else [] for row in rows]
    return [pytest.param(row, id=row.name, marks=m) for row, m in zip(rows, marks)]


def one_in_three(rows):
    """The same; the others run in the slow form."""
    import pytest

    marks = [[] if i % 3 == 0 else [pytest.mark.slow] for i in range(len(rows))]
    return [pytest.param(row, id=row.name, marks=m) for row, m in zip(rows, marks)]


def isometry(shape):
    """A kernel whose layer is as far as possible from a contraction: orthonormal, in one tap."""
    rng = np.random.default_rng(3)
    rows, cols = shape[-2:]
    matrix = np.linalg.qr(rng.normal(size=(max(rows, cols), min(rows, cols))))[0]
    kernel = np.zeros(shape, np.float32)
    kernel[tuple((k - 1) // 2 for k in shape[:-2])] = matrix if rows >= cols else matrix.T
    return kernel[None]


def arrays(shape, count=24):
    """Arrays of one shape that have broken bounds before: random, structured and degenerate."""
    rng = np.random.default_rng(0)
    rows, cols = int(np.prod(shape[:-1])), shape[-1]
    base = rng.normal(size=(rows, cols))
    q = np.linalg.qr(base if rows >= cols else base.T)[0]
    q = q if rows >= cols else q.T
    special = [
        q,  # repeated singular values
        np.outer(base[:, 0], base[0]),
        np.ones((rows, cols)),
        np.eye(rows, cols),
        base * (np.arange(cols) > 0),  # a zero column
        base * 10.0 ** -np.arange(cols),
        base * 1e-30,
        base * 1e30,
        base * 1e-42,
        np.zeros((rows, cols)),
        q + 1e-3 * base,
        np.abs(base),
    ]
    random = list(rng.normal(size=(count - len(special), rows, cols)))
    return np.stack(special + random).reshape(count, *shape).astype(np.float32)


def params_like(layer, arrays_of):
    """Parameters of a layer with each of a stack of kernels in place of its own."""
    params = layer.init(jax.random.key(0))
    kernels = arrays_of(params.kernel.shape)
    count = len(kernels)
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), params)
    return stacked._replace(kernel=jnp.asarray(kernels))


CERTIFICATES = [
    ("margin.radius", lambda logits, h: margin.radius(logits, 0, lipschitz=1.0, head=h)),
    ("margin.certify", lambda logits, h: margin.certify(logits, lipschitz=1.0, head=h).radius),
]
