import contextlib
import io
import os
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from imaging.load import PhotoError, read_photo
from tests.imaging.hostile_files import HOSTILE, JPEG, PHOTO, SRGB, exif, on_white, save, three

# Pillow remarks on broken metadata; that the photo is read regardless is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ACCEPTED = sorted(name for name, file in HOSTILE.items() if file.accepted)
REFUSED = sorted(name for name, file in HOSTILE.items() if not file.accepted)
PNG = save(PHOTO, "PNG")


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_files_are_read_with_the_right_pixels(name, tmp_path):
    file = HOSTILE[name]
    path = tmp_path / f"photo.{file.extension}"
    path.write_bytes(file.content)
    photo = read_photo(path)
    assert (photo.mode, photo.size, photo.info) == ("RGB", file.size, {})
    if file.pixels is not None:
        np.testing.assert_array_equal(np.asarray(photo), file.pixels)


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_use_are_refused_with_a_sentence(name, tmp_path):
    file = HOSTILE[name]
    path = tmp_path / f"photo.{file.extension}"
    path.write_bytes(file.content)
    with pytest.raises(PhotoError) as caught:
        read_photo(path)
    sentence = str(caught.value)
    assert file.says in sentence
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert str(tmp_path) not in sentence


def test_a_truncated_file_never_becomes_a_photo():
    for content in (PNG, JPEG):
        for length in range(0, len(content) - 20, 7):
            with pytest.raises(PhotoError):
                read_photo(content[:length])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM"])
def test_damage_anywhere_gives_a_photo_or_a_sentence(form):
    content = save(PHOTO, form)
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(PhotoError):
            assert read_photo(bytes(damaged), max_pixels=10_000).mode == "RGB"


def test_paths_bytes_files_and_pictures_give_the_same_photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    with open(path, "rb") as file, Image.open(path) as lazy:
        for source in (path, str(path), PNG, io.BytesIO(PNG), file, lazy, Image.fromarray(PHOTO)):
            np.testing.assert_array_equal(np.asarray(read_photo(source)), PHOTO)
        assert not file.closed


def test_a_binary_file_is_read_from_its_start():
    file = io.BytesIO(PNG)
    file.seek(40)
    np.testing.assert_array_equal(np.asarray(read_photo(file)), PHOTO)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_the_source_picture_is_left_as_it_was(mode):
    source = Image.fromarray(PHOTO).convert("L" if mode == "I;16" else mode).convert(mode)
    source.info["icc_profile"] = SRGB
    pixels, info = source.tobytes(), dict(source.info)
    photo = read_photo(source)
    assert (source.tobytes(), source.info) == (pixels, info)
    photo.putpixel((0, 0), (1, 2, 3))
    assert source.tobytes() == pixels


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "RGBa", "LAB"])
def test_other_colour_spaces_come_back_as_rgb(mode):
    flat = Image.new("RGB", (5, 3), (200, 120, 40))
    source = flat.convert("RGBA").convert(mode) if mode == "RGBa" else flat.convert(mode)
    error = np.asarray(read_photo(source)).astype(int) - (200, 120, 40)
    assert np.abs(error).max() <= 3  # 8 bits in the other space


def test_premultiplied_grey_is_blended_once():
    source = Image.new("LA", (2, 2), (100, 128)).convert("La")
    expected = on_white(np.full((2, 2, 3), 100), np.full((2, 2), 128))
    assert np.abs(np.asarray(read_photo(source)).astype(int) - expected).max() <= 1


def test_palette_with_alpha_is_blended_on_white():
    source = Image.new("PA", (1, 1))
    source.putpalette([10, 20, 30])
    source.putalpha(51)
    expected = on_white(np.array([[[10, 20, 30]]]), np.array([[51]]))
    np.testing.assert_array_equal(np.asarray(read_photo(source)), expected)


def test_transparency_follows_the_formula_for_every_value_and_alpha():
    values, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    source = Image.fromarray(np.dstack([three(values), alpha]))
    a = np.arange(256)[:, None] / 255.0
    expected = ((1 - a) * 255 + a * np.arange(256)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read_photo(source))[..., 1], expected)


def test_an_embedded_profile_is_converted_to_srgb():
    # Red and blue swapped: a profile that no reader could ignore unnoticed.
    icc = bytearray(SRGB)
    red, blue = icc.index(b"rXYZ"), icc.index(b"bXYZ")
    icc[red : red + 4], icc[blue : blue + 4] = b"bXYZ", b"rXYZ"
    flat = np.full((4, 4, 3), (250, 100, 20), np.uint8)
    photo = np.asarray(read_photo(save(flat, "PNG", icc_profile=bytes(icc)))).astype(int)
    assert np.abs(photo - (20, 100, 250)).max() <= 2


def test_an_srgb_profile_changes_no_pixel():
    pixels = np.random.default_rng(6).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    photo = read_photo(save(pixels, "PNG", icc_profile=SRGB))
    np.testing.assert_array_equal(np.asarray(photo), pixels)


def test_a_lab_profile_on_rgb_is_ignored():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    photo = read_photo(save(PHOTO, "PNG", icc_profile=lab))
    np.testing.assert_array_equal(np.asarray(photo), PHOTO)


def test_a_picture_with_exif_is_turned_too():
    with Image.open(io.BytesIO(save(PHOTO, "PNG", exif=exif(3)))) as source:
        np.testing.assert_array_equal(np.asarray(read_photo(source)), PHOTO[::-1, ::-1])
        assert source.getexif()[274] == 3


def test_size_is_checked_before_any_pixel_is_decoded(monkeypatch):
    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(PhotoError, match="6 × 4, 24 pixels; up to 23"):
        read_photo(PNG, max_pixels=23)


def test_limits_are_inclusive_and_named_in_the_sentence():
    assert read_photo(PNG, max_pixels=24, max_side=6, min_side=4, max_bytes=len(PNG)).size == (6, 4)
    with pytest.raises(PhotoError, match="6 × 4 pixels; a side may have 5"):
        read_photo(PNG, max_side=5)
    with pytest.raises(PhotoError, match="6 × 4 pixels; each side needs at least 5"):
        read_photo(PNG, min_side=5)
    with pytest.raises(PhotoError, match=r"0\.0001 MB"):
        read_photo(PNG, max_bytes=100)


def test_limits_hold_for_pictures_as_well():
    with pytest.raises(PhotoError, match="0 × 5"):
        read_photo(Image.new("RGB", (0, 5)))
    with pytest.raises(PhotoError, match="24 pixels"):
        read_photo(Image.fromarray(PHOTO), max_pixels=20)


def test_pillows_own_limit_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    for name in ("png-bomb", "png-text-bomb", "truncated-jpeg"):
        with contextlib.suppress(PhotoError):
            read_photo(HOSTILE[name].content)
    assert before == (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        list(warnings.filters),
    )


def test_a_postscript_picture_opened_elsewhere_is_refused_undecoded():
    with (
        Image.open(io.BytesIO(HOSTILE["postscript"].content)) as source,
        pytest.raises(PhotoError, match="EPS"),
    ):
        read_photo(source)


def test_an_opened_picture_that_cannot_be_decoded_is_refused():
    with (
        Image.open(io.BytesIO(HOSTILE["truncated-jpeg"].content)) as source,
        pytest.raises(PhotoError, match="damaged"),
    ):
        read_photo(source)


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(PhotoError, match="not a file"):
        read_photo(tmp_path)
    with pytest.raises(PhotoError, match="No such file"):
        read_photo(tmp_path / "missing.png")
    with pytest.raises(PhotoError, match="name is not valid"):
        read_photo("photo\0.png")


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links and pipes need POSIX")
def test_loops_of_links_and_pipes_are_refused(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(PhotoError, match="links"):
        read_photo(loop)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PhotoError, match="not a file"):
        read_photo(tmp_path / "pipe.png")


def test_a_file_that_fails_while_read_is_refused():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError("disk gone")

    with pytest.raises(PhotoError, match="cannot be read"):
        read_photo(Failing(PNG))


def test_a_stream_that_cannot_seek_is_read():
    class Stream(io.BytesIO):
        def seekable(self):
            return False

    assert read_photo(Stream(PNG)).size == (6, 4)


def test_the_cause_is_kept():
    with pytest.raises(PhotoError) as caught:
        read_photo(b"not a photo")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("source", [None, 7, io.StringIO("text")])
def test_a_source_of_another_type_is_a_mistake_of_the_caller(source):
    with pytest.raises(ValueError, match="expected") as caught:
        read_photo(source)
    assert not isinstance(caught.value, PhotoError)
