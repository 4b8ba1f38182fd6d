"""The reader's own pictures become pixels of one size, in four steps that datasets.py takes one after the other.

bad = {}                                                    # names of those that can't be read, and why
pictures, headers = read_headers(path, pictures, bad)       # sizes and kinds, without decoding
preparation = choose_preparation(classes, headers, size)    # one for all pictures
report_changes(path, pictures, headers, preparation)        # what will be resized, made grey, cut off
pictures, pixels = decode(path, pictures, preparation, bad)
"""

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, ImageSequence
from torch import Tensor
from tqdm import tqdm

from formats import is_huge
from utils import InputError, listed, one_line, printable, usable_memory

IMAGE_SIZE = 32  # pixels, to which pictures of different sizes, or above LARGE, are brought without --image_size
LARGE = 64
FAINT = 16  # levels of 256: pictures with fewer between their darkest and brightest pixel show nothing
NO_DATA = 1e30  # values beyond it stand for "no data", as do NaN and the one that GDAL has written into a TIFF
GDAL_NODATA = 42113  # a tag of TIFF


class Picture(NamedTuple):
    name: str
    open: Callable[[], Image.Image]
    label: str  # the name of its class
    part: str


class Header(NamedTuple):
    """What must be known of every picture before the first one is decoded."""

    size: tuple[int, int]  # width, height, upright
    grey: bool
    transparent: bool
    deep_colour: bool  # 16 bits a colour
    extremes: tuple[float, ...]  # smallest and largest value of grey of more than 8 bits
    gaps: bool  # whether some of these values stand for "no data"
    pages: Sequence[tuple[int, int]]  # their sizes, if there are several


class Preparation(NamedTuple):
    """How a picture becomes pixels, and what the classes are called: it travels with the network."""

    classes: tuple[str, ...]
    image_size: tuple[int, int]  # width, height
    channels: int  # 1: grey, 3: RGB
    grey_range: tuple[float, float] = (0, 65535)  # the values that become 0 and 255 where grey has more than 8 bits


def note(path: Path, what: str, names: Sequence) -> None:
    """Print what holds for how many, and the names of the first, if there are any."""
    if names:
        print(printable(f"{path}: {what} ({len(names):,}): {listed(names, 5)}"))


def read_headers(path: Path, pictures: Collection[Picture], bad: dict[str, str]) -> tuple[list[Picture], list[Header]]:
    """The pictures that can be opened, and the header of each."""
    opened, headers = [], []
    for picture, header in read_all(path, pictures, read_header, bad):
        opened.append(picture)
        headers.append(header)
    return opened, headers


def choose_preparation(classes: Sequence[str], headers: Sequence[Header], image_size: int | None) -> Preparation:
    """One preparation for all pictures: their own size if they share a small one, grey if all of them are."""
    sizes = {header.size for header in headers}
    size = headers[0].size
    if image_size or len(sizes) > 1 or max(size) > LARGE:
        size = (image_size or IMAGE_SIZE,) * 2
    channels = 1 if all(header.grey for header in headers) else 3
    deep = [value for header in headers for value in header.extremes]
    low, high = min(deep, default=0), max(deep, default=65535)
    if low == high:
        high = low + 1
    return Preparation(tuple(map(printable, classes)), size, channels, (low, high))


def report_changes(
    path: Path, pictures: Sequence[Picture], headers: Sequence[Header], preparation: Preparation
) -> None:
    """Print what the preparation changes in which pictures."""
    sizes = {header.size for header in headers}
    if sizes != {preparation.image_size}:
        by_area = sorted(sizes, key=lambda size: (math.prod(size), size))
        small, large = ("{} x {}".format(*size) for size in (by_area[0], by_area[-1]))
        width, height = preparation.image_size
        resized = f"are resized to {width} x {height} (--image_size)"
        print(printable(f"{path}: pictures of {small} to {large} pixels {resized}"))
    names = [picture.name for picture in pictures]
    transparent = [*compress(names, (header.transparent for header in headers))]
    note(path, "with an alpha channel, what is transparent becomes grey", transparent)
    deep_colour = [*compress(names, (header.deep_colour for header in headers))]
    note(path, "with 16 bits a colour, of which the upper 8 are used", deep_colour)
    low, high = preparation.grey_range
    deep_grey = [*compress(names, (header.extremes for header in headers))]
    note(path, f"more than 8 bits, grey of {low:g} to {high:g} becomes 0 to 255", deep_grey)
    gaps = [*compress(names, (header.gaps for header in headers))]
    note(path, f"values for no data (NaN, beyond {NO_DATA:g}, or GDAL's) become black or white", gaps)
    pairs = [*zip(names, headers, strict=True)]
    pages = [f"{name} ({len(header.pages)} pages)" for name, header in pairs if header.pages]
    note(path, "with several pages, of which the first is used", pages)
    thumbnails = [name for name, header in pairs if header.pages and max(header.pages) > header.pages[0]]
    note(path, "whose first page is smaller than another, perhaps a thumbnail", thumbnails)


def decode(
    path: Path, pictures: Sequence[Picture], preparation: Preparation, bad: dict[str, str]
) -> tuple[list[Picture], Tensor]:
    """The pictures that can be decoded, and their pixels (N, C, H, W); says which are left out or blank."""
    n = len(bad) + len(pictures)
    pixels = empty_pixels(path, len(pictures), preparation)
    decoded = []

    def to_pixels(image: Image.Image) -> Tensor:
        size = preparation.image_size
        return prepare(drafted(image, size), size, preparation.channels, preparation.grey_range)

    progress = tqdm(pictures, unit=" pictures", dynamic_ncols=True)
    for picture, array in read_all(path, progress, to_pixels, bad):
        pixels[len(decoded)] = array
        decoded.append(picture)
    pixels = pixels[: len(decoded)]
    if bad:
        print(printable(f"{path}: left out, {can_not_be_read(bad, n)}"))
    check_contrast(path, decoded, np.ptp(pixels, (2, 3)).max(1) < FAINT)
    return decoded, torch.from_numpy(pixels)


def check_contrast(path: Path, pictures: Sequence[Picture], faint: Sequence[bool]) -> None:
    """Print which pictures show nothing; InputError if they are more than half of all, or a whole class."""
    names = [picture.name for picture in compress(pictures, faint)]
    note(path, "nearly the same colour everywhere", names)
    sizes = Counter(picture.label for picture in pictures)
    found = Counter(picture.label for picture in compress(pictures, faint))
    whole = [label for label in found if found[label] == sizes[label]]
    if whole or 2 * len(names) > len(pictures):
        classes = f", all of class {listed(whole, 5)}" if whole else ""
        what = f"{len(names):,} of {len(pictures):,} pictures have nearly the same colour everywhere{classes}"
        why = "NaN is black, and of 16 bits a colour only the upper 8 are read"
        raise InputError(f"{path}: {what}: there is nothing to learn from them ({why}), look at {names[0]}")


def empty_pixels(path: Path, n: int, preparation: Preparation) -> np.ndarray:
    """Room for n pictures (n, C, H, W); InputError if there is too little memory."""
    width, height = preparation.image_size
    shape = n, preparation.channels, height, width
    try:
        if 2 * math.prod(shape) > usable_memory():  # twice, because they are shuffled
            raise MemoryError  # here, because the system may promise more than it has
        return np.empty(shape, np.uint8)
    except MemoryError:
        need = f"{n:,} pictures of {width} x {height} need {math.prod(shape) / 1e9:,.3g} GB of memory"
        raise InputError(f"{path}: {need}, more than there is: choose a smaller --image_size") from None


def read_all(path: Path, pictures: Collection[Picture], read: Callable, bad: dict[str, str]) -> Iterator[tuple]:
    """Each picture and what `read` makes of it; those that can't be read into `bad`, InputError if they are many."""
    n = len(bad) + len(pictures)
    for picture in pictures:
        try:
            with warnings.catch_warnings(action="ignore"), picture.open() as image:
                value = read(image)
        except Exception as error:  # decoders raise whatever they run into in a damaged file
            bad[picture.name] = re.sub(r" \(.*\)$", "", one_line(error))  # such as how many bytes are missing
        else:
            yield picture, value
    most = max(3, n // 100)
    if not path.exists():
        raise InputError(f"{path} is gone, it was there at first: put it back")
    if len(bad) > most:  # otherwise one is left at least: a set that can be split has four
        more = f"{len(bad) - most:,} more than may be left out"
        raise InputError(f"{path}: {can_not_be_read(bad, n)}; {more}: mend or remove them")


def can_not_be_read(bad: dict[str, str], n: int) -> str:
    """How many of n pictures, and for each of the most frequent reasons the first names."""
    names = defaultdict(list)
    for name, reason in sorted(bad.items()):
        names[reason].append(name)
    reasons = sorted(names, key=lambda reason: -len(names[reason]))
    each = [f"{len(names[reason]):,} {reason} ({listed(names[reason], 10)})" for reason in reasons]
    return f"{len(bad):,} of {n:,} can't be read as pictures: {listed(each, 5)}"


def read_header(image: Image.Image) -> Header:
    """What is known of a picture without decoding it; of grey of more than 8 bits also its extremes."""
    extremes, gaps = (), False
    deep_grey = image.mode[0] in "IF"
    if deep_grey:
        values = np.asarray(image, np.float64)
        valid = np.abs(values) < NO_DATA  # NaN is not below it
        no_data = getattr(image, "tag_v2", {}).get(GDAL_NODATA, "").strip(" \0")
        if no_data:
            valid &= values != float(no_data)
        gaps = not valid.all()
        if valid.any():
            extremes = (float(values[valid].min()), float(values[valid].max()))
    sixteen_bits = ";16" in str(getattr(image, "tile", ""))
    exif = Image.Image.getexif(image)  # a PNG's own would read all of it; Pillow turns the size of a TIFF itself
    on_its_side = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return Header(
        size=image.size[::-1] if on_its_side else image.size,
        grey=Image.getmodebase(image.mode) == "L",
        transparent=image.has_transparency_data,
        deep_colour=sixteen_bits and not deep_grey,
        extremes=extremes,
        gaps=gaps,
        pages=page_sizes(image),
    )


def page_sizes(image: Image.Image) -> list[tuple[int, int]]:
    """The sizes of a TIFF's pages, if it has several."""
    if image.format != "TIFF":
        return []
    try:
        with Image.open(image.filename, formats=["TIFF"]) as again:  # whose place may be lost at a damaged page
            sizes = [page.size for page in ImageSequence.Iterator(again)]
    except Exception:  # decoders raise whatever they run into in a damaged page; the first one may be whole
        return []
    return sizes if len(sizes) > 1 else []


def drafted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A JPEG that is too large to be decoded as a whole, decoded at a fraction of its size; others as they are."""
    if is_huge(image):
        image.draft(None, (3 * max(size),) * 2)
    return image


def prepare(image: Image.Image, image_size: tuple[int, int], channels: int, grey_range: tuple[float, float]) -> Tensor:
    """Pixels (C, H, W) of a picture, upright, in this size (width, height), with 1 channel (grey) or 3 (RGB)."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey of more than 8 bits
        low, high = grey_range
        grey = np.nan_to_num((np.asarray(image, np.float64) - low) * 255 / (high - low))
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:  # middle grey shows black and white alike
        image = Image.alpha_composite(Image.new("RGBA", image.size, "#808080"), image.convert("RGBA"))
    image = image.convert("RGB").convert("L" if channels == 1 else "RGB").resize(image_size, reducing_gap=3.0)
    return torch.from_numpy(np.array(image)).view(image.height, image.width, channels).permute(2, 0, 1)
