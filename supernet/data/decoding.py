"""Files of strangers become RGB images here, and nowhere else.

Pillow opens dozens of formats, and some of them start other programs (PostScript starts
Ghostscript). Only the formats that are listed here are tried, by what a file holds, whatever it is
called. What a file announces is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)
# About 8,500 x 10,500 pixels, where Pillow warns too; 256 MiB as RGB.
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 2**29
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# How many bytes `looks_like_image` wants to see.
HEAD_BYTES = 32
_HEAD = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]"
    rb"|RIFF.{4}WEBP|.{4}ftypavi[fs]|P[1-6]\s+[0-9#]",
    re.DOTALL,
)
_ORIENTATION = 0x0112
# What undoes each value of EXIF's orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(content: bytes, *, name: str, turned: bool = True) -> Image.Image:
    """Decode the content of a file to RGB, turned as its EXIF orientation says.

    An alpha channel is dropped; of several frames the first one counts. Colours of 16 bits are
    brought to 8, as Pillow does; grey of 16 bits it would cut off, and that is refused.

    Args:
        content: Of the file.
        name: For messages.
        turned: False leaves the pixels as they are stored.

    Raises:
        ValueError: If it is damaged, of no accepted format, too large, or grey of more than 8 bits.
    """
    try:
        # Pillow warns of damaged metadata, which says nothing about the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                size, mode = image.size, image.mode
                if size[0] * size[1] <= MAX_PIXELS and mode not in WIDE_MODES:
                    # Loading may find EXIF that stands behind the pixels, so it comes first.
                    image.load()
                    pixels = image.convert("RGB")
                    return upright(image, pixels) if turned else pixels
    # Pillow's decoders raise nearly everything on damaged files.
    except Exception as error:
        raise ValueError(
            f"Cannot decode the image {shown(name)} ({_words(error)}). "
            "Replace the file or remove it."
        ) from error
    if mode in WIDE_MODES:
        raise ValueError(
            f"Grey images must have 8 bits, {shown(name)} has mode {mode!r}. Convert it first."
        )
    raise ValueError(
        f"Images may have at most {MAX_PIXELS:,} pixels, {shown(name)} has {size[0]:,} x "
        f"{size[1]:,}. Make it smaller or remove it."
    )


def upright(opened: Image.Image, pixels: Image.Image) -> Image.Image:
    """Turn and mirror ``pixels`` as the EXIF orientation of the ``opened`` image says."""
    try:
        orientation = opened.getexif().get(_ORIENTATION)
    # Damaged EXIF is frequent and says nothing about the pixels.
    except Exception:
        return pixels
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return pixels if turn is None else pixels.transpose(turn)


def looks_like_image(head: bytes) -> bool:
    """Tell from the first `HEAD_BYTES` bytes whether a file has an accepted format."""
    return _HEAD.match(head) is not None


def digest_of(content: bytes | Image.Image) -> int:
    """Return a hash of 63 bits of a file's content or of an image's pixels, never 0."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(content, Image.Image):
        digest.update(f"{content.size} {content.mode}".encode())
        content = content.tobytes()
    digest.update(content)
    return int.from_bytes(digest.digest(), "big") >> 1 or 1


def shown(name: str) -> str:
    """Return a name as it can be printed: what is not UTF-8 and control characters as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def only_listed_formats() -> Iterator[None]:
    """Keep Pillow to the accepted formats while somebody else's code opens files."""
    Image.init()
    known = list(Image.ID)
    Image.ID[:] = [name for name in known if name in (*FORMATS, "MPO")]
    try:
        yield
    finally:
        Image.ID[:] = known


def _words(error: Exception) -> str:
    if "cannot identify image file" in str(error):
        return f"it has none of the formats {', '.join(FORMATS)}"
    return str(error) or type(error).__name__
