"""Strange pictures and files that are none, for `python -m benchmarks.strange_inputs`."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.strange_inputs import Outcome, noise, program, strange, write

TWO_CLASSES = r"2 classes \(cat, dog\)"

# --- what is in a picture -----------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep(root: Path, most: int) -> Outcome:
    """The program on colours of 16 bits that are at most so large; Pillow can't write them."""
    for file in write(root / "set").rglob("*.png"):
        colours = (noise(file.name).astype(np.uint32) * most // 255).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in colours)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0))
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return program(root)


@strange((0, 2), r"12 of|4,?095|16 bits a colour only the upper 8")
def twelve_bits(root: Path) -> Outcome:
    """depth: colours of 16 bits of which 12 are used"""
    return deep(root, 4095)


@strange((0, 2), r"lower 8|0 to 255|16 bits a colour only the upper 8")
def eight_bits(root: Path) -> Outcome:
    """depth: colours of 16 bits of which 8 are used"""
    return deep(root, 255)


def grey_floats(root: Path, change) -> Outcome:
    """The program on TIFF files of floats, each changed."""
    for i, file in enumerate(write(root / "set", suffix="tif").rglob("*.tif")):
        grey = noise(file.name, (30, 40)).astype(np.float32)
        change(i, grey)
        Image.fromarray(grey).save(file)
    return program(root)


@strange(2, r"same colour everywhere|blank|no number")
def not_a_number(root: Path) -> Outcome:
    """depth: nothing but NaN"""
    return grey_floats(root, lambda i, grey: grey.fill(np.nan))


@strange(0, r"grey of 0 to 255")
def no_data(root: Path) -> Outcome:
    """depth: one value of -3.4e38 for no data"""

    def change(i: int, grey: np.ndarray) -> None:
        grey[0, 0] = -3.4028235e38 if i == 0 else grey[0, 0]

    return grey_floats(root, change)


def pages(root: Path, *sizes: tuple[int, int]) -> Outcome:
    for file in write(root / "set", suffix="tif").rglob("*.tif"):
        first, *rest = (Image.fromarray(noise((file.name, i), size)) for i, size in enumerate(sizes))
        first.save(file, save_all=True, append_images=rest)
    return program(root)


@strange(0, r"\b20 pages")
def twenty_pages(root: Path) -> Outcome:
    """pages: TIFF files with twenty pictures"""
    return pages(root, *[(30, 40)] * 20)


@strange(0, r"\b3 pages")
def a_page_for_each_channel(root: Path) -> Outcome:
    """pages: three for three channels"""
    return pages(root, *[(30, 40)] * 3)


@strange(0, r"smaller|thumbnail")
def thumbnail_first(root: Path) -> Outcome:
    """pages: a thumbnail before the picture"""
    return pages(root, (15, 20), (30, 40))


@strange(2, r"same colour everywhere|blank")
def blank(root: Path) -> Outcome:
    """blank: all pictures of a class"""
    for file in (write(root / "set") / "cat").iterdir():
        Image.new("RGB", (40, 30), "white").save(file)
    return program(root)


# --- formats that are not read, and files that are none -----------------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@strange(2, r"30 .*HEIC.*pillow-heif|can't be read")
def heic(root: Path) -> Outcome:
    """format: HEIC only"""
    for file in list(write(root / "set").rglob("*.png")):
        file.rename(file.with_suffix(".HEIC")).write_bytes(HEIC)
    return program(root)


@strange(2, r"HEIC")
def a_class_in_heic(root: Path) -> Outcome:
    """format: one class of three in HEIC"""
    for file in list((write(root / "set", classes=("cat", "dog", "owl")) / "owl").iterdir()):
        file.rename(file.with_suffix(".heic")).write_bytes(HEIC)
    return program(root)


@strange(0, TWO_CLASSES)
def avif(root: Path) -> Outcome:
    """format: AVIF"""
    write(root / "set", suffix="avif")
    return program(root)


@strange(0, TWO_CLASSES)
def jpeg_2000(root: Path) -> Outcome:
    """format: JPEG 2000"""
    write(root / "set", suffix="jp2")
    return program(root)


@strange(2, r"JPEG XL")
def jpeg_xl(root: Path) -> Outcome:
    """format: JPEG XL only"""
    for file in list(write(root / "set").rglob("*.png")):
        file.rename(file.with_suffix(".jxl")).write_bytes(b"\xff\x0a" + bytes(50))
    return program(root)


def one_of(root: Path, n: int, content: bytes | None, name: str = "bad.jpg") -> Outcome:
    """The program on so many pictures and one more file, which is made before if it has no content."""
    write(root / "set", n // 2)
    if content is not None:
        (root / "set/cat" / name).write_bytes(content)
    return program(root)


def wide(file: Path, width: int, height: int, **options: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), 77).save(file, **options)


@strange(0, r"HEIC")
def heic_called_jpg(root: Path) -> Outcome:
    """one bad file: a HEIC file called .jpg"""
    return one_of(root, 30, HEIC)


@strange(0, r"200 (million|megapixels)|20000 x 10000")
def large_png(root: Path) -> Outcome:
    """one bad file: a PNG of 200 megapixels among 30"""
    wide(root / "set/cat/bad.png", 20_000, 10_000)
    return one_of(root, 30, None)


@strange(0, r"200 (million|megapixels)|20000 x 10000")
def large_png_of_many(root: Path) -> Outcome:
    """one bad file: a PNG of 200 megapixels among 200"""
    wide(root / "set/cat/bad.png", 20_000, 10_000)
    return one_of(root, 200, None)


@strange(0, r"20000 x 10000")
def large_jpeg(root: Path) -> Outcome:
    """one bad file: a JPEG of 200 megapixels among 30"""
    wide(root / "set/cat/bad.jpg", 20_000, 10_000)
    return one_of(root, 30, None)


@strange(0, r"left out.*bad\.jpg.*truncated|left out.*truncated.*bad\.jpg")
def cut_off(root: Path) -> Outcome:
    """one bad file: a JPEG that is cut off"""
    wide(root / "set/cat/bad.jpg", 400, 300)
    return one_of(root, 30, (root / "set/cat/bad.jpg").read_bytes()[:900])


@strange(0, r"Git LFS")
def pointer(root: Path) -> Outcome:
    """one bad file: a pointer of Git LFS"""
    return one_of(root, 30, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@strange(0, r"HTML|web page")
def web_page(root: Path) -> Outcome:
    """one bad file: a web page called .jpg"""
    return one_of(root, 30, b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>")


@strange(0, r"empty")
def empty_file(root: Path) -> Outcome:
    """one bad file: an empty one"""
    return one_of(root, 30, b"")


@strange(0, r"link")
def broken_link(root: Path) -> Outcome:
    """one bad file: a link to nothing"""
    write(root / "set", 15)
    (root / "set/cat/bad.png").symlink_to("gone.png")
    return program(root)


def odd_tiff(bits: int, bands: int, kind: int) -> bytes:
    """A TIFF file of 4 x 4 pixels such as Pillow does not read."""
    content = bytes(16 * bands * bits // 8)
    tags = [(256, 4), (257, 4), (258, bits), (259, 1), (262, 1), (273, 8), (277, bands), (278, 4), (279, len(content))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in [*tags, (339, kind)])
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", 10) + entries + bytes(4)


@strange(0, r"TIFF.*64|64.*TIFF")
def double_precision(root: Path) -> Outcome:
    """one bad file: a TIFF of float64"""
    return one_of(root, 30, odd_tiff(64, 1, 3), "bad.tif")


@strange(0, r"TIFF.*5|5.*TIFF")
def five_bands(root: Path) -> Outcome:
    """one bad file: a TIFF of five bands"""
    return one_of(root, 30, odd_tiff(8, 5, 1), "bad.tif")


@strange(2, r"10 of 40 .*7 more|7 .*more")
def too_many(root: Path) -> Outcome:
    """many bad files: ten of forty are empty"""
    write(root / "set")
    for i in range(10):
        (root / f"set/cat/bad{i}.png").touch()
    return program(root)
