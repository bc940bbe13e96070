import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.data import color

CORNERS = np.stack(np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0]), -1).reshape(1, 8, 3)


@pytest.fixture
def image(seeded_key):
    """Random colours, with greys, blacks, whites and ties of two channels among them."""
    pixels = np.array(jax.random.uniform(seeded_key, (6, 8, 3)))
    pixels[0] = CORNERS
    pixels[1] = pixels[1, :, :1]
    pixels[2, :, 1] = pixels[2, :, 0]
    pixels[3, :, 2] = pixels[3, :, 1]
    pixels[4, :, 0] = pixels[4, :, 2]
    return jnp.asarray(pixels)


def _pixelwise(fn, image):
    return np.array([[fn(*pixel.tolist()) for pixel in row] for row in np.asarray(image)])


def test_hsv_is_that_of_colorsys(image):
    hsv = np.asarray(color.rgb_to_hsv(image))
    expected = _pixelwise(colorsys.rgb_to_hsv, image)
    turns = hsv[..., 0] - expected[..., 0]
    np.testing.assert_allclose(turns - np.round(turns), 0, atol=2e-6)
    np.testing.assert_allclose(hsv[..., 1:], expected[..., 1:], atol=2e-6)


def test_hsv_and_back_is_the_identity(image):
    np.testing.assert_allclose(color.hsv_to_rgb(color.rgb_to_hsv(image)), image, atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_turns_as_in_colorsys(image, shift):
    def turned(red, green, blue):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)

    expected = _pixelwise(turned, image)
    np.testing.assert_allclose(color.adjust_hue(image, shift), expected, atol=5e-6)
    if abs(shift) > 0.05:  # the other way round is another image
        assert np.abs(np.asarray(color.adjust_hue(image, -shift + 0.25)) - expected).max() > 0.1


@pytest.mark.parametrize(
    ("adjust", "neutral"),
    [
        (color.adjust_brightness, 1.0),
        (color.adjust_contrast, 1.0),
        (color.adjust_saturation, 1.0),
        (color.adjust_hue, 0.0),
        (color.adjust_hue, 1.0),
    ],
)
def test_the_neutral_strength_changes_nothing(adjust, neutral, image):
    np.testing.assert_allclose(adjust(image, neutral), image, atol=1e-6)
    assert np.abs(np.asarray(adjust(image, neutral + 0.4)) - np.asarray(image)).max() > 0.05


def test_strength_zero_is_black_flat_and_grey(image):
    grey = np.asarray(image) @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_array_equal(color.adjust_brightness(image, 0.0), 0)
    np.testing.assert_allclose(color.adjust_contrast(image, 0.0), grey.mean(), atol=1e-6)
    flat = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_allclose(color.adjust_saturation(image, 0.0), flat, atol=1e-6)


def test_contrast_of_a_grey_image_is_about_its_own_mean(image):
    grey = image[..., :1]
    expected = np.clip(1.5 * grey - 0.5 * float(grey.mean()), 0, 1)
    np.testing.assert_allclose(color.adjust_contrast(grey, 1.5), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, 10.0])
def test_the_result_is_in_the_unit_interval(factor, image):
    for adjust in (color.adjust_brightness, color.adjust_contrast, color.adjust_saturation):
        changed = np.asarray(adjust(image, factor))
        assert changed.min() >= 0 and changed.max() <= 1


def test_value_and_saturation_do_not_turn(image):
    turned = color.rgb_to_hsv(color.adjust_hue(image, 0.3))
    np.testing.assert_allclose(turned[..., 1:], color.rgb_to_hsv(image)[..., 1:], atol=1e-5)


@pytest.mark.parametrize("adjust", [color.adjust_saturation, color.adjust_hue])
def test_grey_images_have_no_saturation_and_no_hue(adjust):
    with pytest.raises(ValueError, match=f"{adjust.__name__} needs 3 colour channels"):
        adjust(jnp.zeros((4, 4, 1)), 0.5)


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 3), (0, 4, 3)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="image has shape"):
        color.adjust_brightness(jnp.zeros(shape), 0.5)
