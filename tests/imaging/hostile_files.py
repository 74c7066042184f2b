"""Files as strangers send them: broken, enormous, rare, or not pictures at all. Made here, by name.

`PHOTO` is the picture behind most of the good ones: 6 × 4, every pixel different.
"""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

W, H = 6, 4
PHOTO = np.random.default_rng(7).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = np.random.default_rng(8).integers(0, 256, (H, W), dtype=np.uint8)
GREY16 = np.random.default_rng(9).integers(0, 65536, (H, W), dtype=np.uint16)


@dataclass(frozen=True)
class HostileFile:
    """A file and what should become of it."""

    content: bytes
    extension: str
    accepted: bool
    size: tuple[int, int] | None = None  # of the picture read, if it is
    pixels: np.ndarray | None = None  # (H, W, 3), where they are known exactly
    says: str = ""  # a part of the sentence, if it is refused


def save(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, form, **options)
    return buffer.getvalue()


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixel by pixel in Python floats."""
    out = np.empty(rgb.shape, dtype=np.uint8)
    for y, x, c in np.ndindex(*rgb.shape):
        a = int(alpha[y, x]) / 255
        out[y, x, c] = int((1 - a) * 255 + a * int(rgb[y, x, c]))
    return out


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def chunk(name: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(
    size: tuple[int, int], kind: int, depth: int, rows: bytes, *extra: bytes, after: bytes = b""
) -> bytes:
    """A PNG by hand; `kind` is its colour type, `extra` whole chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + after + end


def rows_of(pixels: np.ndarray) -> bytes:
    """PNG scan lines with filter 0; 16 bits in network order."""
    big = pixels.astype(">u2") if pixels.dtype == np.uint16 else pixels
    return b"".join(b"\0" + row.tobytes() for row in big)


def rgb_png(*extra: bytes, after: bytes = b"") -> bytes:
    return png((W, H), 2, 8, rows_of(PHOTO), *extra, after=after)


def jpeg_with(segment: bytes) -> bytes:
    """A JPEG of `PHOTO` with a segment (marker and content) after its start."""
    body = JPEG[2:]
    return b"\xff\xd8" + segment[:2] + struct.pack(">H", len(segment)) + segment[2:] + body


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def tiff_float(values: np.ndarray) -> bytes:
    return save(Image.fromarray(values.astype(np.float32)), "TIFF")


# Pillow decodes its own JPEG; what is tested is that the reader adds and loses nothing.
JPEG = save(PHOTO, "JPEG", quality=95, subsampling=0)
JPEG_PIXELS = np.asarray(Image.open(io.BytesIO(JPEG)))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

# What undoes each EXIF orientation, on (H, W, 3), from the tag's definition of row 0 and column 0.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}


def good(content: bytes, extension: str, pixels: np.ndarray | None, **more: object) -> HostileFile:
    size = None if pixels is None else (pixels.shape[1], pixels.shape[0])
    return HostileFile(content, extension, True, **{"size": size, "pixels": pixels, **more})


def bad(content: bytes, extension: str, says: str) -> HostileFile:
    return HostileFile(content, extension, False, says=says)


def _accepted() -> dict[str, HostileFile]:
    photo = Image.fromarray(PHOTO)
    alpha = np.array([[0, 1, 127, 128, 254, 255]] * H, dtype=np.uint8)
    rgba = np.dstack([PHOTO, alpha])
    blended = on_white(PHOTO, alpha)
    indices = (np.arange(H * W, dtype=np.uint8) % 4).reshape(H, W)
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 99, 199]], dtype=np.uint8)
    indexed = Image.fromarray(indices)
    indexed.putpalette(palette.tobytes())
    keyed = on_white(palette[indices], np.where(indices == 2, 0, 255))
    steps = np.array([0, 85, 170, 254], dtype=np.uint8)
    bits = np.random.default_rng(1).integers(0, 2, (H, W)).astype(bool)
    grey8 = np.floor(GREY16 / 257 + 0.5).astype(np.uint8)
    wide = PHOTO.astype(np.uint16) * 257
    other = Image.fromarray(255 - PHOTO)
    thin = np.random.default_rng(2).integers(0, 256, (5000, 1, 3), dtype=np.uint8)
    ink = np.array([[[0, 0, 0, 0], [255, 255, 255, 255]]] * 8, dtype=np.uint8).repeat(8, axis=1)
    paper = three(np.where(ink[..., 3] == 0, 255, 0).astype(np.uint8))
    unit = GREY.astype(np.float32) / 255
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 30_000_000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "x" * 30_000_000, zip=True)
    bomb_profile = b"icc\0\0" + zlib.compress(b"\0" * 50_000_000)
    truncated_exif = b"\xff\xe1Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"
    files = {
        "png": good(save(photo, "PNG"), "png", PHOTO),
        "png-named-jpg": good(save(photo, "PNG"), "jpg", PHOTO),
        "jpeg-named-txt": good(JPEG, "txt", JPEG_PIXELS),
        "no-extension": good(save(photo, "BMP"), "", PHOTO),
        "bmp": good(save(photo, "BMP"), "bmp", PHOTO),
        "ppm": good(save(photo, "PPM"), "ppm", PHOTO),
        "tiff": good(save(photo, "TIFF"), "tif", PHOTO),
        "tiff-lzw": good(save(photo, "TIFF", compression="tiff_lzw"), "tif", PHOTO),
        "webp-lossless": good(save(photo, "WEBP", lossless=True), "webp", PHOTO),
        "jpeg2000-lossless": good(save(photo, "JPEG2000", irreversible=False), "jp2", PHOTO),
        "avif": good(save(photo, "AVIF"), "avif", None, size=(W, H)),
        "one-pixel": good(save(PHOTO[:1, :1], "PNG"), "png", PHOTO[:1, :1]),
        "long-and-thin": good(save(thin, "PNG"), "png", thin),
        "grey": good(save(GREY, "PNG"), "png", three(GREY)),
        "grey-jpeg": good(
            save(np.full((8, 8), 77, np.uint8), "JPEG"), "jpg", np.full((8, 8, 3), 77)
        ),
        "one-bit": good(save(Image.fromarray(bits), "PNG"), "png", three(bits * np.uint8(255))),
        "grey-alpha": good(
            save(Image.fromarray(np.dstack([GREY, alpha]), "LA"), "PNG"),
            "png",
            on_white(three(GREY), alpha),
        ),
        "rgba": good(save(rgba, "PNG"), "png", blended),
        "rgba-tiff": good(save(rgba, "TIFF"), "tif", blended),
        "rgba-webp": good(save(rgba, "WEBP", lossless=True, exact=True), "webp", blended),
        "palette": good(save(indexed, "PNG"), "png", palette[indices]),
        "palette-keyed": good(save(indexed, "PNG", transparency=2), "png", keyed),
        "palette-steps": good(
            save(indexed, "PNG", transparency=steps.tobytes()),
            "png",
            on_white(palette[indices], steps[indices]),
        ),
        "gif-keyed": good(save(indexed, "GIF", transparency=2), "gif", keyed),
        "grey-keyed": good(
            save(GREY, "PNG", transparency=int(GREY[1, 2])),
            "png",
            on_white(three(GREY), np.where(GREY[1, 2] == GREY, 0, 255)),
        ),
        "rgb-keyed": good(
            save(photo, "PNG", transparency=tuple(int(v) for v in PHOTO[2, 3])),
            "png",
            on_white(PHOTO, np.where((PHOTO[2, 3] == PHOTO).all(-1), 0, 255)),
        ),
        "grey-16": good(save(GREY16, "PNG"), "png", three(grey8)),
        "grey-16-keyed": good(
            png((W, H), 0, 16, rows_of(GREY16), chunk(b"tRNS", struct.pack(">H", GREY16[1, 1]))),
            "png",
            on_white(three(grey8), np.where(GREY16[1, 1] == GREY16, 0, 255)),
        ),
        "grey-16-little-endian-tiff": good(save(GREY16, "TIFF"), "tif", three(grey8)),
        "grey-16-big-endian-tiff": good(
            save(Image.frombytes("I;16B", (W, H), GREY16.astype(">u2").tobytes()), "TIFF"),
            "tif",
            three(grey8),
        ),
        "grey-16-ppm": good(save(GREY16, "PPM"), "pgm", three(grey8)),
        "rgb-16": good(png((W, H), 2, 16, rows_of(wide)), "png", PHOTO),
        "whole-numbers-tiff": good(
            save(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), "tif", three(grey8)
        ),
        "float-to-1": good(tiff_float(unit), "tif", three(GREY)),
        "float-to-255": good(tiff_float(GREY), "tif", three(GREY)),
        "cmyk-tiff": good(save(Image.fromarray(ink, "CMYK"), "TIFF"), "tif", paper),
        "cmyk-jpeg-inverted": good(
            save(Image.fromarray(ink, "CMYK"), "JPEG", quality=100), "jpg", paper
        ),
        "lab-tiff": good(save(Image.new("LAB", (W, H)), "TIFF"), "tif", None, size=(W, H)),
        "animated-gif": good(
            save(indexed, "GIF", save_all=True, append_images=[indexed.rotate(180)]),
            "gif",
            palette[indices],
        ),
        "animated-png": good(
            save(photo, "PNG", save_all=True, append_images=[other]), "png", PHOTO
        ),
        "animated-webp": good(
            save(photo, "WEBP", save_all=True, append_images=[other], lossless=True),
            "webp",
            PHOTO,
        ),
        "pages-tiff": good(save(photo, "TIFF", save_all=True, append_images=[other]), "tif", PHOTO),
        "stereo-jpeg": good(
            save(photo, "MPO", save_all=True, append_images=[other], quality=95, subsampling=0),
            "jpg",
            JPEG_PIXELS,
        ),
        "stereo-jpeg-broken-index": good(
            jpeg_with(b"\xff\xe2MPF\0MM\0*\0\0\0\x08\0\x01\xb0"), "jpg", JPEG_PIXELS
        ),
        "jpeg-broken-exif": good(jpeg_with(truncated_exif), "jpg", JPEG_PIXELS),
        "jpeg-broken-profile": good(
            jpeg_with(b"\xff\xe2ICC_PROFILE\0\x01\x01" + b"\xee" * 200), "jpg", JPEG_PIXELS
        ),
        "png-broken-exif": good(rgb_png(chunk(b"eXIf", b"MM\0*\xff\xff")), "png", PHOTO),
        "png-broken-profile": good(save(photo, "PNG", icc_profile=b"\0" * 300), "png", PHOTO),
        "png-unpacking-profile": good(rgb_png(chunk(b"iCCP", bomb_profile)), "png", PHOTO),
        "png-short-gamma": good(rgb_png(chunk(b"gAMA", b"\0")), "png", PHOTO),
        "png-wrong-checksum-in-text": good(
            rgb_png(chunk(b"tEXt", b"a\0b", checksum=1)), "png", PHOTO
        ),
        "png-text-bomb": good(save(photo, "PNG", pnginfo=text), "png", PHOTO),
        "png-exif-behind-pixels": good(
            rgb_png(after=chunk(b"eXIf", exif(6).tobytes()[6:])), "png", UPRIGHT[6](PHOTO)
        ),
        "png-then-garbage": good(save(photo, "PNG") + b"<script>" * 99, "png", PHOTO),
        # Whole as a file, but short of rows: Pillow leaves them black and says nothing.
        "png-too-few-rows": good(
            png((W, H), 2, 8, rows_of(PHOTO[:2])), "png", PHOTO * (np.arange(H) < 2)[:, None, None]
        ),
        "rgb-profile-on-grey": good(save(GREY, "PNG", icc_profile=SRGB), "png", three(GREY)),
        "srgb-profile": good(save(photo, "PNG", icc_profile=SRGB), "png", PHOTO),
    }
    for orientation, turn in UPRIGHT.items():
        content = save(photo, "PNG", exif=exif(orientation))
        files[f"orientation-{orientation}"] = good(content, "png", turn(PHOTO))
    for orientation in (0, 9, 65535):
        content = save(photo, "PNG", exif=exif(orientation))
        files[f"orientation-{orientation}"] = good(content, "png", PHOTO)
    files["orientation-tiff"] = good(save(photo, "TIFF", exif=exif(6)), "tif", UPRIGHT[6](PHOTO))
    turned = save(photo, "JPEG", quality=95, subsampling=0, exif=exif(5))
    files["orientation-jpeg"] = good(turned, "jpg", UPRIGHT[5](JPEG_PIXELS))
    return files


def _refused() -> dict[str, HostileFile]:
    photo = Image.fromarray(PHOTO)
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noisy = {form: save(noise, form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.png", save(photo, "PNG"))
    broken = bytearray(noisy["PNG"])
    broken[200:260] = b"\0" * 60
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    nan, infinite = np.full((4, 4), np.nan), np.full((4, 4), np.inf)
    files = {
        "empty": bad(b"", "jpg", "empty"),
        "text": bad(b"holiday pictures, see attachment\n" * 20, "jpg", "Accepted"),
        "html": bad(b"<!doctype html><title>404</title>", "png", "Accepted"),
        "svg": bad(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg", "Accepted"),
        "pdf": bad(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "pdf", "Accepted"),
        "zip": bad(archive.getvalue(), "png", "Accepted"),
        "video": bad(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "mp4", "Accepted"),
        "heic": bad(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, "heic", "HEIC"),
        "postscript": bad(script, "eps", "Accepted"),
        "postscript-named-png": bad(script, "png", "Accepted"),
        "icon": bad(save(photo, "ICO", sizes=[(4, 4)]), "ico", "Accepted"),
        "targa": bad(save(photo, "TGA"), "tga", "Accepted"),
        "random": bad(np.random.default_rng(4).bytes(4096), "png", "Accepted"),
        "zeros": bad(b"\0" * 4096, "png", "Accepted"),
        "png-signature-only": bad(noisy["PNG"][:8], "png", "Accepted"),
        "png-header-only": bad(noisy["PNG"][:33], "png", "damaged"),
        "png-wrong-checksum": bad(
            png((W, H), 2, 8, b"").replace(b"IHDR", b"IHDR\x01", 1), "png", "damaged"
        ),
        "png-broken-pixels": bad(bytes(broken), "png", "damaged"),
        "png-no-width": bad(png((0, 5), 2, 8, b""), "png", "damaged"),
        "png-unknown-depth": bad(png((W, H), 2, 3, rows_of(PHOTO)), "png", "damaged"),
        "png-bomb": bad(png((30_000, 30_000), 0, 1, b"\0" * 999), "png", "larger"),
        "png-bomb-below-pillows-limit": bad(
            png((9_000, 9_000), 0, 1, b"\0" * 999), "png", "81,000,000"
        ),
        "png-too-wide": bad(png((20_000, 1), 0, 8, b"\0" * 20_001), "png", "20000 × 1"),
        "bmp-bomb": bad(
            noisy["BMP"][:18] + struct.pack("<ii", 60_000, 60_000) + noisy["BMP"][26:],
            "bmp",
            "larger",
        ),
        "jpeg-bomb": bad(
            JPEG.replace(struct.pack(">HH", H, W), struct.pack(">HH", 65_500, 65_500), 1),
            "jpg",
            "larger",
        ),
        "gif-no-frame": bad(b"GIF89a\x05\0\x05\0\0\0\0;", "gif", "damaged"),
        "jpeg-no-pixels": bad(b"\xff\xd8\xff\xd9", "jpg", "damaged"),
        "ppm-negative": bad(b"P6\n-5 4\n255\n" + b"\0" * 60, "ppm", "damaged"),
        "ppm-too-short": bad(b"P6\n6 4\n255\n" + b"\0" * 6, "ppm", "damaged"),
        "jpeg2000-box-only": bad(b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08ftyp", "jp2", "damaged"),
        "float-nan": bad(tiff_float(nan), "tif", "nan"),
        "float-infinite": bad(tiff_float(infinite), "tif", "inf"),
        "float-out-of-range": bad(tiff_float(np.full((4, 4), 1e6)), "tif", "1e+06"),
        "whole-numbers-out-of-range": bad(
            save(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "tif", "70000"
        ),
    }
    for form, content in noisy.items():
        files[f"truncated-{form.lower()}"] = bad(
            content[: len(content) // 2], form.lower(), "damaged"
        )
    return files


HOSTILE: dict[str, HostileFile] = {**_accepted(), **_refused()}
