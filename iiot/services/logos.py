"""Logos of tenants: whatever picture is uploaded is decoded and encoded anew, so that nothing but pixels is ever served."""

import io

from PIL import Image, ImageOps

from iiot.errors import Invalid

MAX_BYTES = 512 * 1024
MAX_SIDE = 4096
SIDE = 256
FORMATS = ("PNG", "JPEG", "WEBP")


def normalised(content: bytes) -> bytes:
    """A PNG of at most 256 × 256 pixels, made of a PNG, JPEG or WebP; raises Invalid for anything else.

    What counts is the content, never the name or the type that the browser says. Metadata are dropped, animations stop at the first frame.
    """
    if not content:
        raise _refuse("choose a picture first")
    if len(content) > MAX_BYTES:
        raise _refuse(f"at most {MAX_BYTES // 1024} KiB")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if max(picture.size) > MAX_SIDE:
                raise _refuse(f"at most {MAX_SIDE} × {MAX_SIDE} pixels")
            small = ImageOps.exif_transpose(picture).convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        clean = Image.new("RGBA", small.size)
        clean.paste(small)
        made = io.BytesIO()
        clean.save(made, "PNG", optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow raises any of these for content that is broken, or is no such picture.
        raise _refuse("this is not a PNG, JPEG or WebP picture, or it is damaged") from None
    return made.getvalue()


def _refuse(message: str) -> Invalid:
    return Invalid("The logo was not saved.", [{"loc": ["body", "logo"], "msg": message}])
