"""What is in files that are called pictures: copies, other formats, nothing to see, several pages, much too much."""

import io
import shutil
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_own_images import everything, noise, refused, sizes, write

import datasets
import formats
import pictures
import report
from datasets import evaluation_data, own_images, search_data
from pictures import Preparation

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.fixture(autouse=True)
def formats_are_looked_up_anew():
    formats.readable.cache_clear()
    yield
    formats.readable.cache_clear()


# --- the same picture twice ---------------------------------------------------------------------------------------


def test_test_pictures_that_are_trained_on_are_counted(tmp_path, capsys):
    root = tmp_path / "set"
    write(root / "train", 6)
    shutil.copytree(root / "train", root / "test")
    data = evaluation_data(str(root), Path("data"))
    assert "18 of 18 test pictures are in the training part too: the test accuracy says nothing" in (
        said := capsys.readouterr().out
    )
    assert "validation pictures" not in said  # drawn from the training part
    assert datasets.count_repeated(data.held_out, data.train) == 18
    for file in (root / "test" / "cat").iterdir():
        Image.fromarray(noise(int(file.stem) + 1000)).save(file)
    data = evaluation_data(str(root), Path("data"))
    assert "12 of 18 test pictures are in the training part too: the test accuracy is too high" in (
        capsys.readouterr().out
    )
    assert datasets.count_repeated(data.held_out, data.train) == 12
    shutil.copytree(root / "train" / "dog", root / "val" / "dog")
    own_images(root, None)
    assert "6 of 6 validation pictures are in the training part too" in capsys.readouterr().out


def test_copies_count_once_when_parts_are_drawn(tmp_path, capsys):
    once = own_images(write(tmp_path / "once" / "set", 20), None)
    assert "same" not in capsys.readouterr().out
    root = write(tmp_path / "set", 20)
    for file in list(root.rglob("*.png")):
        for copy in "ab":
            shutil.copy(file, file.with_stem(file.stem + copy))
    found = own_images(root, None)
    said = capsys.readouterr().out
    assert "left out, the same picture again in its class (120): cat/000a.png, cat/000b.png, cat/001a.png" in said
    assert "are in the training part" not in said
    for ours, other in zip(found[:3], once[:3], strict=True):
        assert torch.equal(ours.pixels, other.pixels) and torch.equal(ours.labels, other.labels)


def test_copies_within_given_parts_stay(tmp_path, capsys):
    root = tmp_path / "set"
    for i, part in enumerate(("train", "val", "test")):
        for file in write(root / part, 5).rglob("*.png"):
            Image.fromarray(np.roll(np.asarray(Image.open(file)), i)).save(file)
    shutil.copy(root / "train/cat/000.png", root / "train/cat/a.png")
    assert sizes(root) == [16, 15, 15] and "same" not in capsys.readouterr().out


def test_equal_pictures_with_different_labels_are_named(tmp_path, capsys):
    root = write(tmp_path / "set", 6)
    (root / "owl" / "a.png").symlink_to(root / "cat" / "001.png")
    assert sum(sizes(root)) == 19  # nobody knows which label is right
    assert "equal pictures with different labels (1): cat/001.png = owl/a.png" in capsys.readouterr().out


def test_a_class_of_one_picture_or_a_picture_in_place_of_most_is_refused(tmp_path):
    root = write(tmp_path / "set", 6)
    kept = (root / "cat" / "000.png").read_bytes()
    for file in (root / "cat").iterdir():
        file.write_bytes(kept)
    assert "all 6 pictures of class cat are the same" in refused(root)
    for file in sorted(root.rglob("*.png"))[1::2]:
        file.write_bytes(kept)
    Image.fromarray(noise(99)).save(root / "cat" / "002.png")
    assert "11 of 18 pictures are the same as cat/000.png" in refused(root)


# --- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix, codec", [("avif", "avif"), ("jp2", "jpg_2000")])
@pytest.mark.filterwarnings("ignore")  # an older Pillow doesn't know of AVIF
def test_formats_of_which_pillow_has_the_codec_are_read(tmp_path, suffix, codec, monkeypatch):
    if not formats.features.check(codec):
        pytest.skip(f"this Pillow was built without {codec}")
    root = tmp_path / "set"
    for file in write(root, 4).rglob("*.png"):
        Image.open(file).resize((16, 16)).save(file.with_suffix(f".{suffix}"))
        file.unlink()
    assert sum(sizes(root)) == 12
    monkeypatch.setattr(formats.features, "check", lambda codec: False)
    formats.readable.cache_clear()
    assert "12 of 12 can't be read as pictures: 12 " in refused(root)


def test_a_format_that_is_not_read_is_named_and_missed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    root = write(tmp_path / "set", 8)
    for file in list((root / "owl").iterdir()):
        file.rename(file.with_suffix(".HEIC")).write_bytes(HEIC)
    message = refused(root)
    assert "8 of 24 can't be read as pictures: 8 HEIC: pip install pillow-heif, or convert it to JPEG (owl/0" in message
    for file in list((root / "owl").iterdir()):
        Image.fromarray(noise(int(file.stem) + 100)).save(file.with_suffix(".jpg"))  # converted, and still there
    assert sum(sizes(root)) == 24
    assert "left out, no picture (8): owl/000.HEIC" in capsys.readouterr().out


def test_heic_is_read_with_its_plugin(tmp_path, monkeypatch):
    """The plugin registers a format with Pillow; here one that finds a PNG behind the first bytes of a HEIC."""

    def register():
        def read(opened, _):
            opened.seek(len(HEIC))
            return Image.open(io.BytesIO(opened.read()), formats=("PNG",))

        Image.register_open("HEIF", read, lambda start: start[4:12] == b"ftypheic")
        Image.register_extension("HEIF", ".heic")

    monkeypatch.setattr(Image, "OPEN", Image.OPEN.copy())
    monkeypatch.setattr(Image, "EXTENSION", Image.EXTENSION.copy())
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    root, plain = write(tmp_path / "set", 4), everything(write(tmp_path / "plain", 4))
    for file in list(root.rglob("*.png")):
        file.with_suffix(".heic").write_bytes(HEIC + file.read_bytes())
        file.unlink()
    assert torch.equal(everything(root), plain)


def tiff(bits: int, bands: int, kind: int) -> bytes:
    """A TIFF of 4 x 4 pixels such as Pillow does not read."""
    content = bytes(16 * bands * bits // 8)
    tags = [(256, 4), (257, 4), (258, bits), (259, 1), (262, 1), (273, 8), (277, bands), (278, 4), (279, len(content))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in [*tags, (339, kind)])
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", 10) + entries + bytes(4)


@pytest.mark.parametrize(
    "content, said",
    [
        (HEIC, "HEIC: pip install pillow-heif, or convert it to JPEG"),
        (b"\xff\x0a" + bytes(40), "JPEG XL: convert it to PNG"),
        (b"", "an empty file"),
        (bytes(2000), "nothing but zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a pointer of Git LFS: git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page: download the picture again"),
        (b"Not found\n", "text"),
        (b"\x89PNG\r\n\x1a\nxx", "damaged PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "damaged JPEG 2000"),
        (b"\x01\x02\x03", "an unknown format"),
        (tiff(64, 1, 3), "TIFF with 1 x 64 bits of floats, which Pillow doesn't read: convert it to PNG"),
        (tiff(8, 5, 1), "TIFF with 5 x 8 bits of whole numbers, which Pillow doesn't read: convert it to PNG"),
        (tiff(8, 5, 1)[:40], "damaged TIFF"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the program ignores what Pillow says of damaged files
def test_what_a_file_is_that_is_no_picture(tmp_path, content, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError) as error:
        formats.open_picture(tmp_path / "x.jpg")
    assert str(error.value) == said


def test_the_thumbnail_in_camera_raw_is_not_the_picture(tmp_path):
    Image.fromarray(noise(0)).save(tmp_path / "x.NEF", "TIFF")
    with pytest.raises(ValueError, match="camera raw: convert it to JPEG"):
        formats.open_picture(tmp_path / "x.NEF")


def test_a_link_to_nothing_and_a_folder_that_goes_are_named(tmp_path, capsys, monkeypatch):
    root = write(tmp_path / "set", 6)
    (root / "owl" / "a.png").symlink_to("gone.png")
    assert sum(sizes(root)) == 18
    assert "1 a link to nothing (owl/a.png)" in capsys.readouterr().out
    read = pictures.read_header

    def lose(image):
        if root.exists():
            root.rename(tmp_path / "elsewhere")
        return read(image)

    monkeypatch.setattr(pictures, "read_header", lose)
    assert refused(root).endswith("set is gone, it was there at first: put it back")


def test_large_jpeg_is_read_at_a_fraction_and_other_large_pictures_are_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: loaded.append(image.size) or load(image))
    root, whole = write(tmp_path / "set", 5), write(tmp_path / "whole", 5)
    ramp = np.linspace(0, 255, 300).astype(np.uint8)[None].repeat(200, 0)
    Image.fromarray(ramp).save(root / "owl" / "large.jpg")
    Image.fromarray(ramp).save(root / "owl" / "large.png")
    loaded.clear()
    found = everything(root)
    assert (300, 200) not in loaded and (150, 100) in loaded
    said = capsys.readouterr().out
    assert "1 300 x 200 = 0 million pixels, more than the 0 million that are decoded (owl/large.png)" in said
    assert "pictures of 8 x 8 to 300 x 200 pixels are resized" in said
    monkeypatch.undo()
    Image.fromarray(ramp).save(whole / "owl" / "large.jpg")
    assert (found.float() - everything(whole).float()).abs().max() < 3


# --- what there is to see -----------------------------------------------------------------------------------------


def save_floats(root: Path, change) -> Path:
    """Each picture as a TIFF of floats, after a change of its values."""
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        values = np.asarray(Image.open(file)).astype(np.float32)
        tags = change(i, values)
        Image.fromarray(values).save(file.with_suffix(".tif"), tiffinfo=tags or {})
        file.unlink()
    return root


def test_nothing_to_see_in_a_class_or_in_most_pictures_is_an_error(tmp_path, capsys):
    root = write(tmp_path / "set", 6)
    for file in list(root.rglob("*.png"))[:3]:
        Image.new("L", (8, 8), 9).save(file.with_stem("blank"))
    assert sum(sizes(root)) == 19 and "nearly the same colour everywhere (1)" in capsys.readouterr().out
    for i, file in enumerate((root / "dog").iterdir()):
        Image.new("L", (8, 8), i).save(file)
    assert "7 of 19 pictures have nearly the same colour everywhere, all of class dog" in refused(root)
    most = write(tmp_path / "most", 6)
    for file in sorted(most.rglob("00[0-3].png")):
        Image.new("L", (8, 8), 9).save(file)
    assert "12 of 18 pictures have nearly the same colour everywhere: there is nothing to learn" in refused(most)
    nan = save_floats(write(tmp_path / "nan", 6), lambda i, values: values.fill(np.nan))
    assert "18 of 18 pictures have nearly the same colour" in refused(nan)


@pytest.mark.parametrize("value, tags", [(-3.4028235e38, None), (np.inf, None), (-9999, {42113: "-9999"})])
def test_values_for_no_data_do_not_make_the_range(tmp_path, capsys, value, tags):
    def change(i, values):
        values[0, 0] = value if i == 4 else values[0, 0]
        return tags if i == 4 else None

    plain = everything(save_floats(write(tmp_path / "plain", 6), lambda i, values: None))
    found = everything(save_floats(write(tmp_path / "set", 6), change))
    different = (found != plain).nonzero()
    assert len(different) <= 1 and different[:, 1:].sum() == 0  # the one that stands for no data
    assert "values for no data (NaN, beyond 1e+30, or GDAL's) become black or white (1): cat/004.tif" in (
        capsys.readouterr().out
    )


def test_pages_that_are_not_used_are_counted(tmp_path, capsys):
    root = write(tmp_path / "set", 4)
    plain = everything(root)
    for file in (root / "cat" / "001.png", root / "dog" / "002.png"):
        first = Image.open(file).copy()
        others = [Image.fromarray(noise(i, 8 if file.parent.name == "cat" else 16)) for i in range(3)]
        first.save(file.with_suffix(".tif"), save_all=True, append_images=others)
        file.unlink()
    assert torch.equal(everything(root), plain)
    said = capsys.readouterr().out
    content = (root / "cat" / "001.tif").read_bytes()
    (root / "cat" / "001.tif").write_bytes(content[: len(content) - 250])  # within the last page
    assert torch.equal(everything(root), plain)
    assert "with several pages, of which the first is used (2): cat/001.tif (4 pages), dog/002.tif (4 pages)" in said
    assert "whose first page is smaller than another, perhaps a thumbnail (1): dog/002.tif" in said


def test_a_search_and_its_evaluation_see_the_same_pictures_without_copies(tmp_path):
    root = write(tmp_path / "set", 10)
    shutil.copy(root / "cat" / "001.png", root / "cat" / "a.png")
    search, final = (function(str(root), Path("data")) for function in (search_data, evaluation_data))
    searched = {image.numpy().tobytes() for image in (*search.train.pixels, *search.held_out.pixels)}
    trained, tested = ({image.numpy().tobytes() for image in part.pixels} for part in (final.train, final.held_out))
    assert searched == trained and not trained & tested and len(trained | tested) == 30


# --- names, and rare classes --------------------------------------------------------------------------------------


def test_control_characters_are_written_out_wherever_names_are_said(tmp_path, capsys):
    root = write(tmp_path / "set", 4, ("cat\nand more", "dog\x1b[31m"))
    (root / "dog\x1b[31m" / "no\npicture.txt").touch()
    *_, preparation = own_images(root, None)
    said = capsys.readouterr().out
    assert (
        preparation.classes == (r"cat\nand more", r"dog\x1b[31m") and r"2 classes (cat\nand more, dog\x1b[31m)" in said
    )
    assert r"no picture (1): dog\x1b[31m/no\npicture.txt" in said and "\x1b" not in said
    for file in (root / "dog\x1b[31m").glob("*.png"):
        file.unlink()
    assert r"one class only, cat\nand more" in refused(root)


@pytest.mark.parametrize(
    "sizes, accuracy, named",
    [((995, 5), 0.995, True), ((980, 20), 0.98, False), ((980, 20), 0.5, True), ((7, 6), 0.5, False)],
)
def test_a_class_too_rare_for_the_accuracy_is_named(sizes, accuracy, named, capsys):
    labels = torch.tensor([0, 1]).repeat_interleave(torch.tensor(sizes))
    data = datasets.Data(None, datasets.Images(None, labels), 2, Preparation(("a", "b"), (8, 8), 1))
    report.print_rare_class(data, report.noise_of_accuracy([{"val_accuracy": accuracy}], data))
    line = f"rarest class        b, {sizes[1]} of the {sum(sizes):,} validation images: only the recall of"
    assert capsys.readouterr().out.startswith(line) == named
