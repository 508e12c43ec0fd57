"""Picture files: the one way in which everybody opens them, and what makes one unusable."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# What becomes RGB without loss of meaning; CMYK by Pillow's formula, as in the official code.
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK")
MIN_SIDE = 16  # pixels: less than one patch of the smallest vision tower
LFS = b"version https://git-lfs.github.com/spec/"  # how a pointer of Git LFS begins
POINTER = "is a Git LFS pointer in place of the file"
PULL = "type `git lfs pull` in the clone that it comes from, and copy it again"
MAX_PIXELS = 50_000_000  # 150 MB as RGB; the largest phone pictures have about this many


class PictureError(ValueError):
    """A file that cannot be used as a picture: `what` is wrong with it, and what to do.

    `detail` says more about this one file.
    """

    def __init__(self, path: str | Path, what: str, advice: str, detail: str = ""):
        self.what, self.advice, self.detail = what, advice, detail
        super().__init__(f"{path} {what}{f' ({detail})' if detail else ''}; {advice}.")


def open_image(path: str | Path) -> Image.Image:
    """The picture as 8-bit RGB, the right way up; greyscale, palette, CMYK, alpha are converted.

    Transparency is dropped, not blended, as Pillow's `convert("RGB")` does. Raises PictureError for
    a file that is missing, damaged, moving, of more than 8 bits, too small or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata: nobody could act on it
            with Image.open(path, formats=FORMATS) as image:
                _check_header(path, image)
                picture = ImageOps.exif_transpose(image).convert("RGB")
                picture.info["path"] = str(path)  # `discretion` has to know what it is
                return picture
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(path, "does not exist", "put the picture there") from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except Image.UnidentifiedImageError:
        refuse_pointer(path)
        known = ", ".join(FORMATS)
        raise PictureError(path, "is not a picture", f"save it as one of {known}") from None
    except Exception as error:  # Pillow raises a dozen kinds for damage
        advice = "copy the file again from its source"
        raise PictureError(path, "is damaged or cut off", advice, str(error)) from None


def refuse_pointer(path: str | Path) -> None:
    """Raises PictureError if the file is not the picture, but Git LFS's word of where it is."""
    try:
        pointer = is_pointer(path)
    except OSError as error:
        raise PictureError(path, "cannot be read", "make it readable", error.strerror) from None
    if pointer:
        raise PictureError(path, POINTER, PULL) from None


def is_pointer(path: str | Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(LFS)) == LFS


def _check_header(path: str | Path, image: Image.Image) -> None:
    """Refuses what the header alone gives away, before any pixel is unpacked."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if min(width, height) < MIN_SIDE:
        advice = f"use one with at least {MIN_SIDE} pixels a side"
        raise PictureError(path, "is too small", advice, f"{width} x {height} pixels")
    if image.mode not in MODES:
        what = f"has the colour mode {image.mode}, whose conversion to RGB is not exact"
        raise PictureError(path, what, "save it as 8-bit RGB")
    # A phone's JPEG may carry a preview as a second frame ("MPO"); that does not make it move.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        what, frames = "is animated or has several pages", f"{image.n_frames} frames"
        raise PictureError(path, what, "save one frame as the picture", frames)


def _too_large(path: str | Path) -> PictureError:
    return PictureError(path, f"is huge (over {MAX_PIXELS:,} pixels)", "save it at a smaller size")
