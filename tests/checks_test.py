"""Argument checks: each names the argument and its value; a traced value passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lipjax import _checks


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "1", None, True, [1.0, 0.0]])
def test_what_is_not_positive(value):
    with pytest.raises(ValueError, match="^eps is .*finite and above 0"):
        _checks.positive(eps=value)


@pytest.mark.parametrize("value", [-1e-30, np.nan, "1", None, 1j])
def test_what_is_negative(value):
    with pytest.raises(ValueError, match="^eps is .*at least 0"):
        _checks.nonnegative(eps=value)
    _checks.nonnegative(eps=np.inf)


@pytest.mark.parametrize("value", [1.5, -0.5, np.nan, [0.5, 2.0]])
def test_what_lies_outside(value):
    with pytest.raises(ValueError, match=r"^share is .*\[0, 1\]"):
        _checks.within(0, 1, share=value)


@pytest.mark.parametrize("value", [0, 1.0, True, "2", None])
def test_what_is_no_count(value):
    with pytest.raises(ValueError, match="^num is .*integer of at least 1"):
        _checks.integer(1, num=value)
    _checks.integer(1, num=np.int64(3))


@pytest.mark.parametrize("value", [0, (1, 2, 3), (1, 0), True, "12", 1.5, (1, 1.5)])
def test_what_is_no_count_per_axis(value):
    with pytest.raises(ValueError, match="^strides is .*have 2 of them"):
        _checks.per_axis(2, strides=value)
    assert _checks.per_axis(2, strides=np.int32(3)) == (3, 3)
    assert _checks.per_axis(2, strides=np.array([1, 2])) == (1, 2)


def test_traced_numbers_pass():
    @jax.jit
    def traced(x):
        _checks.positive(x=x)
        _checks.nonnegative(x=x)
        _checks.within(0, 1, x=x)
        return x

    assert traced(-1.0) == -1.0


@pytest.mark.every
@pytest.mark.parametrize(
    "call,message",
    [
        (lambda x: _checks.ranked(2, "[rows, columns]", x=x), r"\(3,\).*2 axes, \[rows"),
        (lambda x: _checks.ranked((2, 4), x=x), "2 or 4 axes"),
        (lambda x: _checks.at_least_rank(2, x=x), "at least 2 axes"),
        (lambda x: _checks.axis_size(0, 4, "as many as classes", x=x), "length 4 .as many"),
        (lambda x: _checks.nonempty(x=x[:0]), r"\(0,\).*no axis"),
        (lambda x: _checks.real_floating(x=x.astype(jnp.bfloat16)), "bfloat16.*astype"),
        (lambda x: _checks.real_floating(x=x.astype(complex)), "complex64"),
        (lambda x: _checks.floating(x=x.astype(int)), "int32"),
        (lambda x: _checks.same_dtype(jnp.float16, "as h", x=x), "float32.*float16, as h"),
        (lambda x: _checks.one_of(["a", "b"], x="c"), "^x is 'c'.*'a', 'b'"),
        (lambda x: _checks.one_of(["a", "b"], x=np.array(["a", "b"])), "^x is array"),
        (lambda x: _checks.one_key(x=nnx.Rngs(0)), "(?s)^x is Rngs.*one key"),
        (lambda x: _checks.one_key(x=0), r"^x is 0; .*jax.random.key\(0\)"),
        (lambda x: _checks.one_key(x=x), "one key"),
        (lambda x: _checks.one_key(x=jax.random.split(jax.random.key(0), 2)), "one key"),
    ],
)
def test_arrays_are_named(call, message):
    with pytest.raises(ValueError, match="^x ") as error:
        call(jnp.ones(3))
    assert error.match(message)


def test_what_is_no_array_is_named():
    for value in (None, "1", [[1.0], [2.0, 3.0]], [1.0, None], object()):
        with pytest.raises(ValueError, match="^x is .*lists of equal length"):
            _checks.array(x=value)
    for value in (1.0, [[1.0, 2.0]], np.ones(2), jnp.ones(2)):
        assert isinstance(_checks.array(x=value), jax.Array)


def test_keys_of_both_kinds_pass_also_under_vmap():
    _checks.one_key(key=jax.random.key(0), raw=jax.random.PRNGKey(0))
    keys = jax.random.split(jax.random.key(0), 3)
    assert jax.vmap(lambda key: _checks.one_key(key=key) or jax.random.bits(key))(keys).shape == (
        3,
    )
