"""Bits per dimension by hand, dequantization, and PNG sizes."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import dgjax
from dgjax.pictures.png import encode_png, to_image
from dgjax.pictures.quantization import from_uint8, to_uint8


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)])
def test_a_uniform_density_over_all_levels_takes_eight_bits(data_range):
    """Noise of one level on each of 256 levels covers 256/255 of the range, evenly."""
    low, high = data_range
    size = 784
    log_density = -size * np.log((high - low) * 256 / 255)
    np.testing.assert_allclose(dgjax.bits_per_dim(log_density, size, data_range), 8, rtol=1e-12)


def test_bits_per_dim_by_hand():
    """2,000 nats over 1,024 pixels: log2(127.5) - 2000/(1024 ln 2), in an array as alone."""
    expected = 6.994353436858858 - 2.8177637
    got = dgjax.bits_per_dim(np.array([2000.0, 0.0]), 1024, (-1.0, 1.0))
    np.testing.assert_allclose(got, [expected, 6.994353436858858], rtol=1e-7)


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_dequantized_levels_are_uniform_within_one_level(data_range):
    low, high = data_range
    levels = np.random.default_rng(0).integers(0, 256, (50, 20, 1)).astype(np.uint8)
    x = np.asarray(dgjax.dequantize(jax.random.key(0), levels, data_range))
    scaled = (x - low) * 255 / (high - low) - levels + 0.5  # centred on the level
    assert x.shape == levels.shape
    assert (scaled >= -1e-9).all()
    assert (scaled < 1 + 1e-9).all()
    assert stats.kstest(scaled.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(scaled.ravel(), levels.ravel())[0, 1]) < 0.15
    other = dgjax.dequantize(jax.random.key(1), levels, data_range)
    assert (x != other).all()


@pytest.mark.parametrize("levels", [np.zeros(3), np.zeros(3, int), jnp.zeros(3, jnp.int8)])
def test_only_8_bit_levels_are_dequantized(levels):
    with pytest.raises(ValueError, match="only 8-bit"):
        dgjax.dequantize(jax.random.key(0), levels)


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 3.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_level_survives_a_round_trip(data_range, dtype):
    low, high = data_range
    levels = np.arange(256, dtype=np.uint8)
    x = (low + levels * (high - low) / 255).astype(dtype)
    np.testing.assert_array_equal(to_uint8(x, data_range), levels)
    np.testing.assert_allclose(from_uint8(levels, data_range), x, rtol=1e-6, atol=1e-6)
    # Rounded to the nearest, not cut.
    step = (high - low) / 255
    np.testing.assert_array_equal(to_uint8(x + 0.4 * step, data_range), levels)
    np.testing.assert_array_equal(to_uint8(x - 0.4 * step, data_range), levels)


def test_values_outside_the_range_are_clipped():
    assert to_uint8(np.array([-9.0, 9.0, -np.inf, np.inf])).tolist() == [0, 255, 0, 255]


def test_nan_is_black():
    assert to_uint8(np.array([np.nan, 1.0]), (0.0, 1.0)).tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_bytes_count_the_detail(channels):
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (28, 28, channels))
    ramp = np.broadcast_to(np.linspace(-1, 1, 28)[:, None, None], noise.shape)
    sizes = [dgjax.png_bytes(x) for x in (np.zeros_like(noise), ramp, noise)]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < 100
    # 8-bit noise cannot be compressed.
    assert 784 * channels < sizes[2] < 784 * channels + 200


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_the_pixels(channels, mode):
    x = np.random.default_rng(0).uniform(-1, 1, (5, 7, channels))
    levels = to_uint8(x)
    image = Image.open(io.BytesIO(encode_png(levels)))
    assert image.mode == mode
    np.testing.assert_array_equal(np.asarray(image).reshape(x.shape), levels)
    assert dgjax.png_bytes(x) == len(encode_png(levels))


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 2), (1, 28, 28, 1)])
@pytest.mark.parametrize("fn", [to_image, encode_png, dgjax.png_bytes])
def test_other_shapes_are_no_image(fn, shape):
    with pytest.raises(ValueError, match="an image has shape"):
        fn(np.zeros(shape))


@pytest.mark.parametrize("fn", [to_image, encode_png])
def test_samples_that_are_not_quantized_are_refused(fn):
    with pytest.raises(ValueError, match="must be uint8, got float64"):
        fn(np.zeros((4, 4, 1)))
