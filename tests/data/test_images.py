"""Decoding against Pillow; corrupt files are named, counted, skipped, and in the end an error."""

import contextlib
import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.pictures import encoded, jpeg, smooth
from PIL import Image

from tfrobust.data.crops import centre_crop
from tfrobust.data.images import (
    CorruptImageError,
    CorruptImageLog,
    TooManyCorruptImagesError,
    decode,
    read_images,
)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture
def picture(rng):
    return Image.fromarray(smooth(rng, 41, 58))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpegs_of_every_colour_space_become_rgb(picture, mode, options):
    """Pillow's inverse transform is exact, TensorFlow's the fast one: a few grey levels apart."""
    data = encoded(picture.convert(mode), subsampling=0, **options)
    found = decode(data)
    assert found.shape == (41, 58, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - pillow(data)).max() <= 10
    assert np.abs(found - pillow(data)).mean() < 2
    assert np.abs(found - np.asarray(picture.convert(mode).convert("RGB")).astype(int)).mean() < 2


def test_cmyk_inks_and_adobes_complement(rng, picture):
    """Adobe stores 255 - ink and says so in an APP14 segment; without it, values are ink.

    Pillow always takes them for the complement.
    """
    black = Image.fromarray(smooth(rng, 41, 58)[..., 0])
    inks = Image.merge("CMYK", [*picture.split(), black])
    data = encoded(inks, subsampling=0)
    found = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    adobe = (255 - found[..., :3]) * (255 - found[..., 3:]) / 255
    assert np.abs(decode(data) - adobe).mean() < 2
    start = data.index(b"\xff\xee")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    plain = decode(data[:start] + data[start + 2 + length :])
    assert np.abs(plain - found[..., :3] * found[..., 3:] / 255).mean() < 2
    assert np.abs(plain - adobe).mean() > 30


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF"])
def test_the_format_is_told_from_the_bytes(picture, form):
    data = encoded(picture, form)
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_webp(picture):
    data = encoded(picture, "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(data), np.asarray(picture))


def test_only_the_first_frame_of_a_gif(picture):
    frames = [picture, picture.transpose(Image.Transpose.ROTATE_180)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_pngs_of_every_kind(picture, mode):
    data = encoded(picture.convert(mode), "PNG")
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_transparency_is_dropped(picture):
    clear = picture.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(decode(encoded(clear, "PNG")), np.asarray(picture))


def test_sixteen_bits_are_cut_to_eight():
    deep = np.arange(41 * 58, dtype=np.uint16).reshape(41, 58) * 27
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep), "PNG")), expected)


@pytest.mark.parametrize(
    ("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})]
)
@pytest.mark.parametrize("left", [0.999, 0.9, 0.5, 0.05, 0])
def test_a_truncated_image_is_corrupt_not_padded(picture, form, options, left):
    data = encoded(picture, form, **options)
    with pytest.raises(CorruptImageError):
        decode(data[: int(left * len(data))])


def test_what_is_no_image_is_corrupt():
    with pytest.raises(CorruptImageError, match="Unknown image file format") as caught:
        decode(b"<html>not found</html>")
    assert "{{" not in str(caught.value)
    assert "Op:" not in str(caught.value)


def test_skipping_counts_each_image_once_and_stops_at_the_limit():
    skipping = CorruptImageLog(2)

    def attempt(index):
        return skipping.attempt(index, lambda: f"{index}.JPEG", lambda: decode(b"no"))

    with pytest.warns(UserWarning, match=r"5\.JPEG is corrupt and skipped .*1 so far"):
        assert attempt(5) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attempt(5) is None
    with pytest.warns(UserWarning, match="2 so far, max_corrupt=2"):
        assert attempt(3) is None
    assert skipping.attempt(4, lambda: "4", lambda: 44) == 44
    assert skipping.names == ("3.JPEG", "5.JPEG")
    with pytest.raises(
        TooManyCorruptImagesError, match=r"3 with max_corrupt=2: 3\.JPEG, 5\.JPEG, 9\.JPEG"
    ):
        attempt(9)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        CorruptImageLog(-1)


def test_errors_that_are_not_of_images_are_not_skipped(tmp_path):
    skipping = CorruptImageLog(5)
    with pytest.raises(FileNotFoundError):
        skipping.attempt(0, lambda: "gone", lambda: (tmp_path / "gone").read_bytes())
    assert skipping.names == ()


def test_recorded_errors_come_out_as_themselves_and_others_as_they_are():
    skipping = CorruptImageLog(0)

    def fail(_):
        raise OSError("the disk is gone")

    failing = skipping.recording(fail)
    data = tf.data.Dataset.range(2).map(lambda x: tf.numpy_function(failing, [x], tf.int64))
    with pytest.raises(OSError, match=r"^the disk is gone$"), skipping.errors():
        list(data)
    with pytest.raises(tf.errors.InvalidArgumentError), skipping.errors():
        decode_nothing()
    with pytest.raises(KeyError), skipping.errors():
        raise KeyError("mine")
    with pytest.raises(tf.errors.OpError):
        list(data)  # recorded, and told by nobody
    with pytest.raises(tf.errors.InvalidArgumentError), skipping.errors():
        decode_nothing()


def test_an_error_of_what_was_read_ahead_comes_out_as_itself():
    """Recorded while no block is open, told when its element is due, in a compiled loop."""
    skipping, recorded = CorruptImageLog(0), threading.Event()

    def fail_at_three(index):
        if index == 3:
            recorded.set()
            raise TooManyCorruptImagesError("too many")
        return index

    read = skipping.recording(fail_at_three)
    data = tf.data.Dataset.range(5).map(lambda x: tf.numpy_function(read, [x], tf.int64))
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    batches = iter(strategy.distribute_datasets_from_function(lambda _: data.prefetch(5)))

    @tf.function
    def run(batches):
        for _ in range(3):
            strategy.run(tf.identity, (next(batches),))

    with skipping.errors():
        run(batches)
    assert recorded.wait(10)
    with pytest.raises(TooManyCorruptImagesError, match=r"^too many$"), skipping.errors():
        run(batches)


def decode_nothing():
    tf.io.decode_jpeg(b"")


@pytest.fixture
def folder(tmp_path, rng):
    """Five images in three folders, and what is no image."""
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    for name, data in {
        "b/deep/2.jpeg": jpeg(rng),
        "a/1.PNG": encoded(smooth(rng, 30, 90), "PNG"),
        "z.JPEG": encoded(smooth(rng, 64, 64), "PNG"),
        "a/0.jpg": jpeg(rng, 90, 20),
        "b/3.bmp": encoded(smooth(rng, 33, 47), "BMP"),
        "notes.txt": b"not an image",
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


NAMES = ("a/0.jpg", "a/1.PNG", "b/3.bmp", "b/deep/2.jpeg", "z.JPEG")


def test_reading_a_folder(folder):
    images, names = read_images(folder, size=(16, 24), validation_side=30)
    assert names == NAMES
    assert images.shape == (5, 16, 24, 3)
    assert images.dtype == np.float32
    for image, name in zip(images, names, strict=True):
        pixels = decode((folder / name).read_bytes())
        np.testing.assert_array_equal(image, centre_crop(pixels, (16, 24), 30))


def test_reading_some_or_named_files(folder):
    images, names = read_images(folder, size=(16, 16), limit=2)
    assert names == NAMES[:2]
    files = [folder / "z.JPEG", str(folder / "a/0.jpg")]
    chosen, names = read_images(files, size=(16, 16))
    assert names == tuple(map(str, files))
    np.testing.assert_array_equal(chosen[1], images[0])
    alone, names = read_images(folder / "z.JPEG", size=(16, 16))
    assert names == ("z.JPEG",)
    np.testing.assert_array_equal(alone, chosen[:1])


def test_the_default_leaves_out_least(folder):
    images, _ = read_images([folder / "z.JPEG"], size=(24, 16))
    pixels = decode((folder / "z.JPEG").read_bytes())
    np.testing.assert_array_equal(images[0], centre_crop(pixels, (24, 16), 24))


def test_corrupt_files_are_replaced_by_the_next_up_to_the_limit(folder):
    (folder / "a/1.PNG").write_bytes((folder / "a/1.PNG").read_bytes()[:-30])
    (folder / "b/3.bmp").write_bytes(b"")
    with pytest.warns(UserWarning, match="is corrupt and skipped") as caught:
        images, names = read_images(folder, size=(16, 16), limit=3, max_corrupt=2)
    assert names == ("a/0.jpg", "b/deep/2.jpeg", "z.JPEG")
    assert len(images) == 3
    told = " ".join(str(warning.message) for warning in caught)
    assert "a/1.PNG" in told
    assert "b/3.bmp" in told
    with (
        pytest.warns(UserWarning),
        pytest.raises(TooManyCorruptImagesError, match=r"max_corrupt=1: a/1\.PNG, b/3\.bmp"),
    ):
        read_images(folder, size=(16, 16), max_corrupt=1)
    with (
        pytest.warns(UserWarning),
        pytest.raises(TooManyCorruptImagesError, match=r"every image is corrupt: .*1\.PNG"),
    ):
        read_images([folder / "a/1.PNG"], size=(16, 16))


def test_more_files_than_one_chunk_keep_their_order(tmp_path):
    for index in range(150):
        colour = np.full((8, 8, 3), index, np.uint8)
        (tmp_path / f"{index:03}.png").write_bytes(encoded(colour, "PNG"))
    images, names = read_images(tmp_path, size=(8, 8))
    assert names == tuple(f"{index:03}.png" for index in range(150))
    np.testing.assert_allclose(images[:, 0, 0, 0], np.arange(150), atol=1e-3)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        read_images(tmp_path / "absent", size=(8, 8))
    with pytest.raises(FileNotFoundError, match=r"no image .*jpg.* in "):
        read_images(tmp_path, size=(8, 8))
    with pytest.raises(FileNotFoundError, match=r"no such image file: .*gone"):
        read_images([tmp_path / "gone.jpg"], size=(8, 8))
    with pytest.raises(FileNotFoundError, match="empty list"):
        read_images([], size=(8, 8))
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        read_images(tmp_path, size=(8, 8), limit=0)
    with pytest.raises(ValueError, match="does not fit"):
        read_images(tmp_path, size=(8, 8), validation_side=7)


def test_a_real_photograph(data_dir):
    """Whole path on one ImageNet image: decoded as Pillow decodes it, middle cut out."""
    folder = Path(data_dir) / "imagenet_sample" / "val"
    images, names = read_images(folder, size=(256, 256), limit=2)
    assert len(names) == 2
    assert names[0].startswith("n01440764/")
    pixels = pillow((folder / names[0]).read_bytes())
    assert min(pixels.shape[:2]) == 256
    # the longer side is scaled by one pixel: compare the means of blocks
    height, width = pixels.shape[:2]
    top, left = (height - 256) // 2, (width - 256) // 2
    middle = pixels[top : top + 256, left : left + 256]
    blocks = [part.reshape(16, 16, 16, 16, 3).mean((1, 3)) for part in (middle, images[0])]
    assert np.abs(blocks[0] - blocks[1]).mean() < 2


def test_damage_inside_jpeg_data_cannot_be_told():
    """What the guide on data says: JPEG has no checksums, and decoders do not notice."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    content = tf.io.encode_jpeg(pixels, quality=90).numpy()
    whole, silent = decode(content), 0
    for place in rng.integers(700, len(content) - 10, 40):
        damaged = bytearray(content)
        damaged[place] ^= 16
        with contextlib.suppress(CorruptImageError):
            silent += not np.array_equal(decode(bytes(damaged)), whole)
    assert silent > 20
