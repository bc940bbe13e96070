import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipjax.data import augment, color

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
CASES = {
    "crop": functools.partial(augment.random_crop, pad=2),
    "affine": functools.partial(
        augment.random_affine, shift=0.6, rotation=9.0, scale=0.1, shear=0.1
    ),
    "crop-edge": functools.partial(augment.random_crop, pad=9, mode="edge"),
    "crop-constant": functools.partial(augment.random_crop, pad=9, mode="constant"),
    "flip": augment.random_flip,
    "jitter": functools.partial(augment.color_jitter, **JITTER),
    "noise": functools.partial(augment.gaussian_noise, sigma=0.1),
}


@pytest.fixture
def image(seeded_key):
    return jax.random.uniform(jax.random.fold_in(seeded_key, 0), (6, 5, 3))


@pytest.mark.parametrize("case", CASES)
def test_shape_type_and_range_stay(case, seeded_key, image):
    changed = CASES[case](seeded_key, image)
    assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
    if case != "noise":
        assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_a_function_of_the_key(case, image):
    keys = jax.random.split(jax.random.key(0), 16)
    results = [np.asarray(CASES[case](key, image)) for key in keys]
    again = [np.asarray(CASES[case](key, image)) for key in keys]
    np.testing.assert_array_equal(results, again)
    assert len({result.tobytes() for result in results}) > 1


@pytest.mark.parametrize("case", CASES)
def test_jit_and_vmap_are_the_loop(case, seeded_key):
    key_images, key_batch = jax.random.split(seeded_key)
    images = jax.random.uniform(key_images, (4, 6, 5, 3))
    keys = jax.random.split(key_batch, 4)
    mapped = jax.jit(jax.vmap(CASES[case]))(keys, images)
    loop = np.stack([CASES[case](key, image) for key, image in zip(keys, images)])
    np.testing.assert_allclose(mapped, loop, atol=2e-6)


@pytest.mark.every
@pytest.mark.parametrize("case", CASES)
def test_batches_and_bytes_are_refused(case, key):
    with pytest.raises(ValueError, match=r"image has shape \(2, 6, 5, 3\).*vmap"):
        CASES[case](key, jnp.zeros((2, 6, 5, 3)))
    with pytest.raises(ValueError, match=r"image has dtype uint8.*to_unit"):
        CASES[case](key, jnp.zeros((6, 5, 3), jnp.uint8))


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_a_crop_without_padding_is_the_identity(mode, seeded_key, image):
    np.testing.assert_array_equal(augment.random_crop(seeded_key, image, pad=0, mode=mode), image)


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_crops_are_the_windows_of_the_padded_image_equally_often(mode, image):
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode=mode)
    windows = [padded[i : i + 6, j : j + 5].tobytes() for i in range(3) for j in range(3)]
    assert len(set(windows)) == 9
    keys = jax.random.split(jax.random.key(5), 900)
    crop = functools.partial(augment.random_crop, pad=1, mode=mode)
    crops = np.asarray(jax.jit(jax.vmap(crop, in_axes=(0, None)))(keys, image))
    counts = np.bincount([windows.index(crop.tobytes()) for crop in crops], minlength=9)
    assert np.abs(counts - 100).max() < 5 * np.sqrt(900 * (1 / 9) * (8 / 9))


@pytest.mark.parametrize("pad", [5, 6])
def test_reflection_ends_with_the_image(pad, key, image):
    with pytest.raises(ValueError, match=f"pad is {pad}.*at most 4"):
        augment.random_crop(key, image, pad=pad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad": -1}, "pad is -1"),
        ({"pad": 1.5}, "pad is 1.5"),
        ({"pad": 1, "mode": "wrap"}, "mode"),
    ],
)
def test_bad_options_of_a_crop(options, message, key, image):
    with pytest.raises(ValueError, match=message):
        augment.random_crop(key, image, **options)


def test_two_flips_with_one_key_are_the_identity(image):
    for key in jax.random.split(jax.random.key(0), 8):
        twice = augment.random_flip(key, augment.random_flip(key, image))
        np.testing.assert_array_equal(twice, image)


def test_a_flip_mirrors_left_and_right_half_of_the_time(image):
    keys = jax.random.split(jax.random.key(1), 1000)
    flipped = np.asarray(jax.vmap(augment.random_flip, in_axes=(0, None))(keys, image))
    mirrored = np.all(flipped == np.asarray(image)[:, ::-1], axis=(1, 2, 3))
    assert np.all(mirrored | np.all(flipped == np.asarray(image), axis=(1, 2, 3)))
    assert abs(mirrored.mean() - 0.5) < 5 * np.sqrt(0.25 / 1000)


def test_no_jitter_is_the_identity(seeded_key, image):
    np.testing.assert_array_equal(augment.color_jitter(seeded_key, image), image)
    pairs = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
    np.testing.assert_array_equal(augment.color_jitter(seeded_key, image, **pairs), image)


@pytest.mark.parametrize(
    ("name", "pair", "adjust"),
    [
        ("brightness", (0.7, 0.7), color.adjust_brightness),
        ("contrast", (0.7, 0.7), color.adjust_contrast),
        ("saturation", (0.7, 0.7), color.adjust_saturation),
        ("hue", (0.2, 0.2), color.adjust_hue),
    ],
)
def test_a_range_of_one_point_is_that_strength(name, pair, adjust, seeded_key, image):
    jittered = augment.color_jitter(seeded_key, image, **{name: pair})
    np.testing.assert_allclose(jittered, adjust(image, pair[0]), atol=1e-6)
    assert np.abs(np.asarray(jittered) - np.asarray(image)).max() > 0.02


def test_the_order_is_brightness_contrast_saturation_hue(seeded_key, image):
    strengths = {"brightness": (1.5,) * 2, "contrast": (0.6,) * 2, "saturation": (1.8,) * 2}
    jittered = augment.color_jitter(seeded_key, image, **strengths, hue=(0.1,) * 2)
    steps = (
        (color.adjust_brightness, 1.5),
        (color.adjust_contrast, 0.6),
        (color.adjust_saturation, 1.8),
        (color.adjust_hue, 0.1),
    )
    expected, other = image, image
    for adjust, strength in steps:
        expected = adjust(expected, strength)
    for adjust, strength in reversed(steps):
        other = adjust(other, strength)
    np.testing.assert_allclose(jittered, expected, atol=1e-5)
    assert np.abs(np.asarray(jittered) - np.asarray(other)).max() > 0.01


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 0.6, 1.4), (3.0, 0.0, 4.0)])
def test_brightness_factors_fill_their_range(strength, low, high):
    keys = jax.random.split(jax.random.key(2), 2000)
    pixel = jnp.full((1, 1, 1), 0.125)  # 8 times brighter is still in range
    jitter = functools.partial(augment.color_jitter, brightness=strength)
    factors = 8 * np.asarray(jax.vmap(jitter, in_axes=(0, None))(keys, pixel)).ravel()
    width = high - low
    assert low <= factors.min() < low + 0.01 * width and high - 0.01 * width < factors.max() <= high
    assert abs(factors.mean() - (low + high) / 2) < 5 * width / np.sqrt(12 * 2000)


def test_grey_images_change_brightness_and_contrast_only(key):
    image = jnp.full((4, 4, 1), 0.5)
    assert augment.color_jitter(key, image, brightness=0.2, contrast=0.2).shape == image.shape
    for name in ("saturation", "hue"):
        with pytest.raises(ValueError, match=f"adjust_{name} needs 3 colour channels"):
            augment.color_jitter(key, image, **{name: 0.1})


@pytest.mark.every
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize(
    "value", [-0.1, float("nan"), float("inf"), (1.2, 0.8), (-0.1, 1), (1, 1, 1), "0.4", None]
)
def test_bad_factors_are_refused(name, value, key, image):
    with pytest.raises(ValueError, match=f"{name} is"):
        augment.color_jitter(key, image, **{name: value})


@pytest.mark.every
@pytest.mark.parametrize("value", [-0.1, 0.6, float("nan"), (0.2, -0.2), (-0.6, 0.0), (0.1,)])
def test_bad_turns_are_refused(value, key, image):
    with pytest.raises(ValueError, match="hue is"):
        augment.color_jitter(key, image, hue=value)


def test_noise_has_its_deviation_and_is_not_clipped(seeded_key):
    image = jnp.full((64, 64, 3), 0.5)
    noise = np.asarray(augment.gaussian_noise(seeded_key, image, sigma=0.25)) - 0.5
    count = noise.size
    assert abs(noise.mean()) < 5 * 0.25 / np.sqrt(count)
    assert abs(noise.std() - 0.25) < 5 * 0.25 / np.sqrt(2 * count)
    assert noise.min() < -0.5 and noise.max() > 0.5


def test_noise_of_zero_changes_nothing_and_sigma_may_be_traced(seeded_key, image):
    noisy = jax.jit(lambda sigma: augment.gaussian_noise(seeded_key, image, sigma=sigma))
    np.testing.assert_array_equal(noisy(0.0), image)
    np.testing.assert_allclose(
        noisy(0.3), augment.gaussian_noise(seeded_key, image, sigma=0.3), atol=1e-6
    )
    with pytest.raises(ValueError, match="sigma is -1"):
        augment.gaussian_noise(seeded_key, image, sigma=-1.0)


class TestRandomAffine:
    IMAGE = jnp.asarray(np.random.default_rng(3).random((6, 5, 2)), jnp.float32)

    def test_shift_is_exact_for_straight_lines(self, seeded_key):
        ramp = jnp.broadcast_to(jnp.linspace(0.2, 0.7, 9)[:, None, None], (9, 9, 1))
        moved = augment.random_affine(seeded_key, ramp, shift=0.5)
        inner = np.asarray(moved - ramp)[2:-2, 2:-2]
        step = float(ramp[1, 0, 0] - ramp[0, 0, 0])
        assert np.ptp(inner) < 1e-5 and abs(inner).max() <= 0.5 * step + 1e-5
        assert abs(inner).max() > 1e-4 * step

    def test_a_turned_plane_is_a_plane_and_its_middle_stays(self, seeded_key):
        plane = jnp.asarray(0.5 + 0.05 * np.subtract.outer(np.arange(9), np.arange(9)), jnp.float32)
        plane = plane[..., None]
        turned = np.asarray(augment.random_affine(seeded_key, plane, rotation=20.0))[3:-3, 3:-3, 0]
        np.testing.assert_allclose(turned[1, 1], 0.5, atol=1e-5)
        np.testing.assert_allclose(turned[0, 0] + turned[2, 2], 2 * turned[1, 1], atol=1e-5)
        assert abs(turned - np.asarray(plane)[3:-3, 3:-3, 0]).max() > 1e-5

    def test_nothing_is_the_image_and_values_stay_in_range(self, key):
        np.testing.assert_allclose(augment.random_affine(key, self.IMAGE), self.IMAGE, atol=1e-5)
        amounts = dict(shift=2.0, rotation=30.0, scale=0.3, shear=0.3)
        keys = jax.random.split(key, 50)
        moved = jax.vmap(lambda k: augment.random_affine(k, self.IMAGE, **amounts))(keys)
        assert moved.min() >= 0 and moved.max() <= 1
        assert len(np.unique(np.asarray(moved)[:, 2, 2, 0])) > 40

    @pytest.mark.every
    @pytest.mark.parametrize("amount", ["shift", "rotation", "scale", "shear"])
    def test_bad_amounts_are_named(self, key, amount):
        with pytest.raises(ValueError, match=f"{amount} is -1"):
            augment.random_affine(key, self.IMAGE, **{amount: -1})
