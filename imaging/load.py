"""The one place where a file from a stranger becomes a picture.

Knows what can be wrong with a file: not a picture, broken, enormous, turned on its side, in another
colour space, half transparent. What leaves here is upright RGB, 8 bit, without metadata. Does not
know what the picture is for; the limits are the caller's.
"""

import io
import os
import stat
import struct
import zlib
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile

# Formats that Pillow decodes inside the process and recognises by a signature. Left out on purpose:
# EPS and WMF, which start other programs; ICO and ICNS, whose header may announce less than they
# unpack; TGA, which has no signature, so that any bytes may pass for one.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ACCEPTED = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM and JPEG 2000"

# A stereo or burst JPEG, opened by the JPEG plugin but named by itself.
OPENED_AS = (*FORMATS, "MPO")

# Everything seen to come out of Pillow when the bytes are hostile: its own errors are OSError,
# SyntaxError and ValueError, the rest are parsers tripping over lengths and tags (AssertionError in
# JPEG 2000, RecursionError, a RuntimeError, in nested TIFF directories).
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    BufferError,
    EOFError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The optional PNG chunks that change what is seen. Text and animation are not among them.
PNG_KEPT = (b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf")
# Larger than any display profile; what Pillow itself agrees to unpack.
PROFILE_BYTES = 1 << 20

# How to turn a picture upright, by EXIF orientation (EXIF 2.32, tag 274).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(ValueError):
    """A photo that cannot be used, with a sentence that says why and what to do."""


def read_photo(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    *,
    max_pixels: int = 40_000_000,
    max_side: int = 16384,
    min_side: int = 1,
    max_bytes: int = 60_000_000,
) -> Image.Image:
    """Read a photo as a new picture: RGB, 8 bit, upright, without metadata.

    The content decides about the format, not the name. Size is checked in the header, before any
    pixel is decoded. Of an animation or a document of many pages the first is read.

    - EXIF orientation is applied, mirrored ones too.
    - Transparency is blended on white as PURE does: `(1 - a) * 255 + a * rgb`, truncated.
    - 16-bit grey is divided by 257 and rounded. Of 16-bit RGB, and of 16-bit grey with alpha,
      Pillow gives the high byte only.
    - Whole numbers of 32 bits must lie within 16 bits and are read as such. Floating point is read
      as [0, 1], or as [0, 255] if a value exceeds 1.
    - An embedded ICC profile is converted to sRGB; one that is broken, or made for other
      channels, is ignored.

    Args:
        source: a path, the content of a file, a binary file, which is read from its start and left
            open, or a picture, of which the frame it stands at is read and which is not changed.
        max_pixels: width × height at most.
        max_side: of width and height, in pixels, at most.
        min_side: of width and height, in pixels, at least.
        max_bytes: of the file at most; does not apply to a picture.

    Raises:
        PhotoError: the photo cannot be used.
        ValueError: `source` is none of these types.
    """
    check = partial(_check_size, max_pixels=max_pixels, max_side=max_side, min_side=min_side)
    if isinstance(source, Image.Image):
        # A file that was opened but not decoded is still what a stranger sent.
        if isinstance(source, ImageFile.ImageFile) and source.format not in OPENED_AS:
            raise PhotoError(f"{source.format} files are not read here. Accepted are {ACCEPTED}.")
        check(source.size)
        try:
            return _to_rgb(_upright(source.copy()))
        except PhotoError:
            raise
        except UNREADABLE as error:
            raise PhotoError(
                "The photo is damaged and could not be decoded. Save it again, as PNG or JPEG."
            ) from error

    data = _without_extras(_read_bytes(source, max_bytes))
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(
            f"The photo is far larger than the {max_pixels:,} pixels that are read here. "
            "Crop it or make it smaller."
        ) from error
    except UNREADABLE as error:
        raise PhotoError(_unrecognised(data)) from error
    with image:
        check(image.size)
        try:
            image.load()
            return _to_rgb(_upright(image))
        except PhotoError:
            raise
        except UNREADABLE as error:
            raise PhotoError(
                f"The {image.format} file is damaged or incomplete and could not be decoded. "
                "Upload it again, or save it anew as PNG or JPEG."
            ) from error


def _read_bytes(source: str | os.PathLike[str] | bytes | BinaryIO, max_bytes: int) -> bytes:
    """The content of a file, at most `max_bytes`.

    All of it at once: what is decoded is then what was checked, even if the file changes meanwhile.
    """
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str | os.PathLike):
        try:
            # Before opening, because opening a named pipe waits for somebody to write.
            if not stat.S_ISREG(os.stat(source).st_mode):
                raise PhotoError(f"This is not a file. Choose a photo: {ACCEPTED}.")
            with open(source, "rb") as file:
                data = file.read(max_bytes + 1)
        except PhotoError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "its name is not valid"
            raise PhotoError(f"The file cannot be read ({reason}). Upload it again.") from error
    elif hasattr(source, "read"):
        try:
            if source.seekable():
                source.seek(0)
            data = source.read(max_bytes + 1)
        except UNREADABLE as error:
            raise PhotoError("The file cannot be read. Upload it again.") from error
        if not isinstance(data, bytes):
            raise ValueError(f"expected a file opened in binary mode, got {type(data).__name__}")
    else:
        raise ValueError(f"expected a path, bytes, a file or a picture, got {type(source)}")
    if not data:
        raise PhotoError("The file is empty: 0 bytes. Upload it again.")
    if len(data) > max_bytes:
        raise PhotoError(
            f"The file is larger than {max_bytes / 1e6:.3g} MB, the most that is read here. "
            "Make the photo smaller or save it as JPEG."
        )
    return data


def _without_extras(data: bytes) -> bytes:
    """A PNG or JPEG without the parts that can stop Pillow but are no part of the picture.

    In a PNG: text, which may unpack to gigabytes, animation beyond the picture, and optional chunks
    whose checksum is wrong. In a JPEG: the index of further pictures. Other files, and whatever
    cannot be parsed, stay as they are for Pillow to judge.
    """
    if data.startswith(PNG_SIGNATURE):
        return _png_without_extras(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_without_index(data)
    return data


def _png_without_extras(data: bytes) -> bytes:
    kept = [PNG_SIGNATURE]
    start = len(PNG_SIGNATURE)
    while len(data) - start >= 12:  # length, name and checksum, 4 bytes each
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        required = not name[0] & 0x20  # an upper-case first letter; Pillow checks these itself
        if required or (name in PNG_KEPT and _is_sound(name, data[start + 4 : end])):
            kept.append(data[start:end])
        start = end
        if name == b"IEND":
            return b"".join(kept)
    kept.append(data[start:])
    return b"".join(kept)


def _is_sound(name: bytes, chunk: bytes) -> bool:
    """Whether an optional PNG chunk, name to checksum, is what was written and can be unpacked."""
    if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:]):
        return False
    content = chunk[4:-4]
    if name in (b"gAMA", b"sRGB", b"cHRM"):
        # Pillow raises on short ones
        return len(content) == {b"gAMA": 4, b"sRGB": 1, b"cHRM": 32}[name]
    if name != b"iCCP":
        return True
    _, separator, packed = content.partition(b"\0")
    if not separator or packed[:1] != b"\0":
        return False
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed[1:], PROFILE_BYTES)
    except zlib.error:
        return False
    return unpacker.eof


def _jpeg_without_index(data: bytes) -> bytes:
    kept = [data[:2]]
    start = 2
    while data[start : start + 1] == b"\xff" and len(data) - start >= 4:
        marker, length = struct.unpack_from(">xBH", data, start)
        if not 0xC0 <= marker <= 0xFE or marker == 0xDA or length < 2:  # 0xDA: pixels follow
            break
        end = start + 2 + length
        if not (marker == 0xE2 and data[start + 4 : start + 8] == b"MPF\0"):
            kept.append(data[start:end])
        start = end
    kept.append(data[start:])
    return b"".join(kept)


def _unrecognised(data: bytes) -> str:
    """What to say about bytes that Pillow does not recognise as one of `FORMATS`."""
    # ISO base media file; the brands of Apple's and Android's HEIF photos
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "This is a HEIC photo, which is not read here. Save it as JPEG and try again."
    return (
        f"This file of {len(data):,} bytes is not a picture that can be read here, or it is "
        f"damaged. Accepted are {ACCEPTED}."
    )


def _check_size(size: tuple[int, int], *, max_pixels: int, max_side: int, min_side: int) -> None:
    width, height = size
    if min(size) < max(min_side, 1):
        raise PhotoError(
            f"The photo is {width} × {height} pixels; each side needs at least "
            f"{max(min_side, 1)}. Choose a larger one."
        )
    if max(size) > max_side:
        raise PhotoError(
            f"The photo is {width} × {height} pixels; a side may have {max_side} at most. "
            "Crop it or make it smaller."
        )
    if width * height > max_pixels:
        raise PhotoError(
            f"The photo is {width} × {height}, {width * height:,} pixels; up to {max_pixels:,} "
            "are read here. Crop it or make it smaller."
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of a decoded picture.

    Not before decoding: PNG may keep its EXIF behind the pixels, and Pillow turns TIFF by itself.
    """
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except UNREADABLE:  # broken EXIF says nothing, and the pixels are fine without it
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of a decoded picture as sRGB on white, in a picture of its own."""
    profile = image.info.get("icc_profile")
    transparent = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        values = _numbers(image)
        alpha = None
        if image.mode.startswith("I;16") and isinstance(transparent, int):
            alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        colour = Image.fromarray(_to_levels(values, is_float=image.mode == "F"))
    elif transparent is not None or image.mode in ("RGBA", "RGBa", "LA", "La", "PA", "P"):
        if image.mode == "La":  # Pillow knows the way from premultiplied grey through LA only
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        colour, alpha = rgba.convert("RGB"), rgba.getchannel("A")
        if image.mode in ("1", "L", "LA"):
            colour = colour.getchannel("R")  # so that a grey profile still applies
    else:
        colour, alpha = image, None

    rgb = _to_srgb(colour, profile)
    if alpha is not None and alpha.getextrema() != (255, 255):
        return _on_white(rgb, alpha)
    pixels = rgb.copy()
    pixels.info.clear()
    return pixels


def _numbers(image: Image.Image) -> np.ndarray:
    """The values (H, W) of a picture of mode I, F or one of the I;16 kinds."""
    if image.mode.startswith("I;16"):
        # Not np.asarray: it has no answer for every byte order on every machine.
        order = ">" if image.mode.endswith("B") else "<"
        values = np.frombuffer(image.tobytes("raw", image.mode), dtype=f"{order}u2")
        return values.reshape(image.height, image.width)
    return np.asarray(image)


def _to_levels(values: np.ndarray, *, is_float: bool) -> np.ndarray:
    """Numbers of more than 8 bits as 8 bits, rounded."""
    low, high = values.min(), values.max()  # NaN comes through both
    if not is_float:
        if low < 0 or high > 65535:
            raise PhotoError(
                f"The photo's values run from {low} to {high}; whole numbers are read from 0 to "
                "65535. Save it with 8 or 16 bits per channel."
            )
        return ((values.astype(np.int32) + 128) // 257).astype(np.uint8)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise PhotoError(
            f"The photo's values run from {low:g} to {high:g}; floating point is read from 0 to 1 "
            "or from 0 to 255. Save it with 8 or 16 bits per channel."
        )
    return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Pixels without alpha as sRGB, through the embedded ICC profile if there is one."""
    if profile:
        source = image.convert("L") if image.mode == "1" else image
        if source.mode not in ("L", "RGB", "CMYK", "LAB"):
            source = source.convert("RGB")
        try:
            converted = ImageCms.profileToProfile(
                source,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except UNREADABLE:
            # A broken profile, or one for other channels, is common and says nothing about the
            # pixels; browsers show such a photo as if it had none.
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _on_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """`(1 - a) * 255 + a * rgb` in float64, then truncated: PURE's rule, to the bit."""
    pixels, opacity = np.array(rgb), np.asarray(alpha)  # (H, W, 3), (H, W)
    rows = max(1, (1 << 20) // rgb.width)  # about a million pixels at a time: floats are large
    for top in range(0, rgb.height, rows):
        band = slice(top, top + rows)
        a = (opacity[band] / 255.0)[..., None]
        pixels[band] = ((1 - a) * 255 + a * pixels[band]).astype(np.uint8)
    return Image.fromarray(pixels)
