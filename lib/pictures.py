"""Picture files: the one way in which everybody opens them, and what makes one unusable."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# What becomes RGB without loss of meaning; CMYK by Pillow's formula, as in the official code.
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK")
MIN_SIDE = 16  # pixels: less than one patch of the smallest vision tower
MAX_PIXELS = 50_000_000  # 150 MB as RGB; the largest phone pictures have about this many


class PictureError(ValueError):
    """A file that cannot be used as a picture: `what` is wrong with it, and what to do."""

    def __init__(self, path: Path, what: str, advice: str):
        self.what, self.advice = what, advice
        super().__init__(f"{path} {what}; {advice}.")


def open_image(path: str | Path) -> Image.Image:
    """The picture as 8-bit RGB, the right way up; greyscale, palette, CMYK, alpha are converted.

    Transparency is dropped, not blended, as Pillow's `convert("RGB")` does. Raises PictureError for
    a file that is missing, damaged, moving, of more than 8 bits, too small or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata: nobody could act on it
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_header(path, image)
                picture = ImageOps.exif_transpose(image).convert("RGB")
                picture.info["path"] = str(path)  # `discretion` has to know what it is
                return picture
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(path, "does not exist", "put the picture there") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(path) from None
    except Image.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise PictureError(path, "is not a picture", f"save it as one of {known}") from None
    except Exception as error:  # Pillow raises a dozen kinds for damage
        what = f"is damaged or cut off ({error})"
        raise PictureError(path, what, "copy the file again from its source") from None


def _check_header(path: str | Path, image: Image.Image) -> None:
    """Refuses what the header alone gives away, before any pixel is unpacked."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if min(width, height) < MIN_SIDE:
        what = f"is too small ({width} x {height} pixels)"
        raise PictureError(path, what, f"use one with at least {MIN_SIDE} pixels a side")
    if image.mode not in MODES:
        what = f"has the colour mode {image.mode}, whose conversion to RGB is not exact"
        raise PictureError(path, what, "save it as 8-bit RGB")
    # A phone's JPEG may carry a preview as a second frame ("MPO"); that does not make it move.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        what = f"is animated or has several pages ({image.n_frames} frames)"
        raise PictureError(path, what, "save one frame as the picture")


def _too_large(path: str | Path) -> PictureError:
    return PictureError(path, f"is huge (over {MAX_PIXELS:,} pixels)", "save it at a smaller size")
