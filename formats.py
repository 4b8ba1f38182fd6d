"""Which formats of pictures are read, and what a file is that can't be read as one."""

import math
import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, SAMPLESPERPIXEL, ImageFileDirectory_v2

ALWAYS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")  # others may run other programs
CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # formats for which Pillow may have been built, or not
SUFFIXES = {  # formats that are read only where a codec is installed, or never
    "HEIC": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "AVIF": (".avif", ".avifs"),
    "JPEG 2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "JPEG XL": (".jxl",),
    "DICOM": (".dcm", ".dicom"),
    "camera raw": (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
}
REMEDIES = {
    "HEIC": "pip install pillow-heif, or convert it to JPEG",
    "AVIF": "pip install --upgrade pillow, or convert it to PNG",
    "camera raw": "convert it to JPEG",
    "a pointer of Git LFS": "git lfs pull",
    "a web page": "download the picture again",
}
CONTENTS = {  # how files begin
    "AVIF": rb"....ftyp(avif|avis)",
    "HEIC": rb"....ftyp(he[iv][cmsx]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "DICOM": rb".{128}DICM",
    "damaged JPEG": rb"\xff\xd8\xff",
    "damaged PNG": rb"\x89PNG",
    "damaged GIF": rb"GIF8",
    "damaged WebP": rb"RIFF....WEBP",
    "a pointer of Git LFS": rb"version https://git-lfs",
    "a web page": rb"\s*<(!doctype )?html",
    "SVG or other XML": rb"\s*<(\?xml|svg)",
    "PDF": rb"%PDF",
    "a ZIP archive": rb"PK\x03\x04",
    "nothing but zeros": rb"\0+\Z",
    "text": rb"[\t\n\r -~]+\Z",
}


@cache
def readable() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here."""
    with warnings.catch_warnings(action="ignore"):  # Pillow before 11.3 doesn't know of AVIF
        formats = [*ALWAYS, *(name for name, codec in CODECS.items() if features.check(codec))]
    try:
        import pillow_heif  # here, because nothing else needs it
    except ImportError:
        return tuple(formats)
    pillow_heif.register_heif_opener()
    return (*formats, "HEIF")


def pictures_among(files: Sequence[Path]) -> list[Path]:
    """Those of a folder's files that are pictures by their suffix.

    Pictures in a format that isn't read are among them, so that they are missed, unless they are there in another one.
    """
    formats = readable()
    read = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    unread = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    stems = {file.stem for file in files if file.suffix.lower() in read}
    return [
        file
        for file in files
        if file.suffix.lower() in read or (file.suffix.lower() in unread and file.stem not in stems)
    ]


def open_picture(file: Path) -> Image.Image:
    """A picture that is not decoded yet; an error that says what the file is instead."""
    if file.suffix.lower() in SUFFIXES["camera raw"]:  # many are TIFF with a thumbnail
        raise ValueError(f"camera raw: {REMEDIES['camera raw']}")
    largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow would refuse large JPEG, too
    try:
        image = Image.open(file, formats=readable())
    except UnidentifiedImageError:
        raise ValueError(what_it_is(file)) from None
    except FileNotFoundError as error:
        raise ValueError("a link to nothing" if file.is_symlink() else error.strerror) from None
    except OSError as error:
        raise ValueError(error.strerror or error) from None
    finally:
        Image.MAX_IMAGE_PIXELS = largest
    if is_huge(image) and not isinstance(image, JpegImageFile):
        raise ValueError(f"{size_in_millions(image)}, more than the {2 * largest / 1e6:.0f} million that are decoded")
    return image


def is_huge(image: Image.Image) -> bool:
    """Whether Pillow would take it for a decompression bomb."""
    return math.prod(image.size) > 2 * (Image.MAX_IMAGE_PIXELS or math.inf)


def size_in_millions(image: Image.Image) -> str:
    width, height = image.size
    return f"{width} x {height} = {width * height / 1e6:.0f} million pixels"


def what_it_is(file: Path) -> str:
    """What a file is that no format recognises, and what to do."""
    with file.open("rb") as opened:
        start = opened.read(1000)
    if not start:
        return "an empty file"
    if start[:4] in (b"II*\0", b"MM\0*"):
        return kind_of_tiff(file)
    by_name = (name for name, suffixes in SUFFIXES.items() if file.suffix.lower() in suffixes)
    by_content = (name for name, pattern in CONTENTS.items() if re.match(pattern, start, re.DOTALL | re.IGNORECASE))
    name = next(by_content, None) or next(by_name, "an unknown format")
    if name.replace(" ", "") in readable() or (name == "HEIC" and "HEIF" in readable()):
        return f"damaged {name}"
    remedy = REMEDIES.get(name, "convert it to PNG" if name in SUFFIXES else "")
    return f"{name}: {remedy}" if remedy else name


def kind_of_tiff(file: Path) -> str:
    """What is special about a TIFF that Pillow doesn't read."""
    try:
        with warnings.catch_warnings(action="ignore"), file.open("rb") as opened:
            tags = ImageFileDirectory_v2(opened.read(8))
            opened.seek(tags.next)
            tags.load(opened)
            bands, bits = tags.get(SAMPLESPERPIXEL, 1), tags[BITSPERSAMPLE][0]
        number = "floats" if tags.get(SAMPLEFORMAT, (1,))[0] == 3 else "whole numbers"
        return f"TIFF with {bands} x {bits} bits of {number}, which Pillow doesn't read: convert it to PNG"
    except Exception:  # decoders raise whatever they run into in a damaged file
        return "damaged TIFF"
