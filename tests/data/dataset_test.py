import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax import data


@pytest.mark.parametrize("max_value", [16, 255])
def test_to_unit_spans_the_unit_interval(max_value):
    pixels = np.arange(max_value + 1, dtype=np.uint8)
    unit = data.to_unit(pixels, max_value)
    assert unit.dtype == jnp.float32
    assert (unit[0], unit[-1]) == (0, 1)
    assert np.all(np.diff(unit) > 0)
    np.testing.assert_allclose(unit, pixels / max_value, rtol=1e-6)


@pytest.mark.parametrize("max_value", [16, 255])
def test_to_unit_is_the_same_number_under_jit(max_value):
    pixels = jnp.arange(max_value + 1, dtype=jnp.uint8)
    jitted = jax.jit(data.to_unit, static_argnums=1)(pixels, max_value)
    np.testing.assert_array_equal(jitted, data.to_unit(pixels, max_value))


def test_to_unit_refuses_images_that_were_scaled_already():
    with pytest.raises(ValueError, match=r"images has dtype float32.*uint8"):
        data.to_unit(np.zeros((2, 2), np.float32), 255)


@pytest.mark.every
@pytest.mark.parametrize("max_value", [0, 256, 1.0, True])
def test_to_unit_refuses_a_max_value_that_no_byte_has(max_value):
    with pytest.raises(ValueError, match="max_value is"):
        data.to_unit(np.zeros((2, 2), np.uint8), max_value)


def test_a_split_moves_to_a_device_as_one_value():
    split = data.Split(np.zeros((2, 1, 1, 1), np.uint8), np.arange(2, dtype=np.int32))
    moved = jax.device_put(split)
    assert isinstance(moved, data.Split) and isinstance(moved.images, jax.Array)
