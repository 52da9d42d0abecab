"""Class maps of whole images, windows, scales and mirrored images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fastervit_jax import create_model, predict
from fastervit_jax.data.preprocessing import normalize
from fastervit_jax.segmentation.inference import InferenceSettings, class_maps, starts
from fastervit_jax.segmentation.resize import resize

CLASSES = 5


def _image(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def network():
    """A function of windows that depends on the place in the window: logits at a quarter."""
    weights = jax.random.normal(jax.random.key(0), (3, CLASSES))

    @jax.jit
    def scores(windows, sizes):
        values = normalize(windows)
        n, height, width, _ = values.shape
        pooled = values.reshape(n, height // 4, 4, width // 4, 4, 3).mean((2, 4))
        place = jnp.arange(height // 4)[:, None, None] * 0.02
        return pooled @ weights + place

    return scores


def _by_hand(scores, image, settings, size):
    """mmsegmentation's slide inference, with a canvas of sums and counts."""
    pixels = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    window, stride = settings.window, settings.stride
    total, counts = np.zeros((*size, CLASSES)), np.zeros((*size, 1))
    rows = max(size[0] - window[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(size[1] - window[1] + stride[1] - 1, 0) // stride[1] + 1
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + window[0], size[0])
            right = min(column * stride[1] + window[1], size[1])
            top, left = max(bottom - window[0], 0), max(right - window[1], 0)
            part = jnp.asarray(pixels[top:bottom, left:right][None])
            logits = resize(scores(part, None), part.shape[1:3])[0]
            total[top:bottom, left:right] += np.asarray(logits)
            counts[top:bottom, left:right] += 1
    return np.asarray(resize(jnp.asarray(total / counts)[None], (image.height, image.width))[0])


def test_windows_are_averaged_as_mmsegmentation_averages_them(network):
    image = _image(90, 150)
    settings = InferenceSettings(window=(64, 64), stride=(40, 40), short_side=72, long_side=200)
    expected = _by_hand(network, image, settings, (72, 120)).argmax(-1)
    (found,) = class_maps(network, [image], settings, batch_size=4)
    assert found.shape == (90, 150)
    # The sums round differently where two classes are equal.
    assert (found == expected).mean() > 0.999


def test_one_window_is_the_whole_image(network):
    """Where the window has the size of the image, both are the same to the bit."""
    image = _image(64, 64)
    options = dict(window=(64, 64), short_side=64, long_side=64)
    (slide,) = class_maps(network, [image], InferenceSettings(**options), batch_size=1)
    (whole,) = class_maps(
        network, [image], InferenceSettings(**options, mode="whole"), batch_size=1
    )
    np.testing.assert_array_equal(slide, whole)


def test_a_network_without_context_does_not_see_windows(network):
    """One whose answer at a pixel depends on that pixel: windows change nothing."""
    image = _image(96, 160)

    def scores(windows, sizes):
        return normalize(jnp.asarray(windows)) @ jnp.eye(3, CLASSES)

    options = dict(window=(48, 48), short_side=96, long_side=200)
    (slide,) = class_maps(scores, [image], InferenceSettings(**options), batch_size=3)
    (whole,) = class_maps(scores, [image], InferenceSettings(**options, mode="whole"), batch_size=3)
    assert (slide == whole).mean() > 0.999


def test_images_in_a_batch_do_not_change_each_other(network):
    settings = InferenceSettings(window=(32, 32), short_side=48, long_side=200)
    images = [_image(50, 70, 1), _image(80, 60, 2), _image(48, 48, 3)]
    together = list(class_maps(network, images, settings, batch_size=5))
    for image, found in zip(images, together, strict=True):
        (alone,) = class_maps(network, [image], settings, batch_size=2)
        np.testing.assert_array_equal(alone, found)


def test_mirrored_images_and_scales_are_averaged(network):
    image = _image(64, 64, 4)
    options = dict(window=(64, 64), short_side=64, long_side=128)
    settings = InferenceSettings(**options, flip=True, scales=(1.0, 1.5))
    (found,) = class_maps(network, [image], settings, batch_size=2)
    (mirrored,) = class_maps(
        network, [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], settings, batch_size=2
    )
    assert (found == mirrored[:, ::-1]).mean() > 0.99
    (plain,) = class_maps(network, [image], InferenceSettings(**options), batch_size=2)
    assert (found != plain).any()


@pytest.mark.parametrize(
    "size, expected", [(512, [0]), (513, [0, 1]), (683, [0, 171]), (1024, [0, 341, 512])]
)
def test_the_grid_of_windows(size, expected):
    assert starts(size, 512, 341) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mode="tiles"), "Invalid mode='tiles': expected slide or whole"),
        (dict(stride=(0, 40)), "Invalid stride=.* from 1 to the window's sides"),
        (dict(stride=(80, 40)), "Invalid stride"),
        (dict(scales=()), "Invalid scales"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceSettings(window=(64, 64), **options)


def test_predict_returns_classes_in_the_images_own_pixels():
    model = create_model(
        "upernet_faster_vit_0",
        num_classes=3,
        resolution=32,
        depths=(1, 1, 1, 1),
        dim=8,
        in_dim=8,
        channels=8,
        auxiliary_channels=0,
        window_size=(2, 2, 2, 2),
    )
    model.preprocessing = type(model.preprocessing)(
        resolution=(32, 32), crop_mode="center", crop_fraction=1.0, short_side=32, long_side=128
    )
    model.class_names = ("sky", "sea", "sand")
    image = _image(40, 50)
    (found,) = predict(model, image)
    assert found.classes.shape == (40, 50)
    assert set(found.shares()) <= {"sky", "sea", "sand"}
    assert sum(found.shares().values()) == pytest.approx(1)
    # At once, as the network itself says.
    (whole,) = predict(model, image, mode="whole")
    pixels = np.asarray(image.resize((40, 32), Image.Resampling.BILINEAR))
    logits = nnx.jit(lambda model, x: model(x))(model, normalize(jnp.asarray(pixels[None])))
    own = resize(logits, (40, 50))[0].argmax(-1)
    assert (np.asarray(own) == whole.classes).mean() > 0.995
