"""Image sets: torchvision's, and the reader's own."""

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from datasets import (
    MNIST_MD5,
    Images,
    evaluation_data,
    fingerprint,
    first_images,
    load_images,
    own_images,
    search_data,
    split_off,
)
from utils import InputError

DATA = Path(__file__).parent.parent / "data"

# --- torchvision's ------------------------------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path) -> Path:
    shutil.copytree(
        DATA / "MNIST" / "raw", tmp_path / "MNIST" / "raw", ignore=lambda _, names: [n for n in names if ".gz" not in n]
    )
    return tmp_path


def test_mnist_is_unpacked_once_checked_and_read(data_dir):
    images, preparation = load_images("MNIST", data_dir, train=False)
    assert images.pixels.shape == (10_000, 1, 28, 28) and images.pixels.dtype == torch.uint8
    assert preparation[0][3] == "3 - three" and preparation[1:3] == ((28, 28), 1)
    assert images.labels[:5].tolist() == [7, 2, 1, 0, 4]
    for name, md5 in MNIST_MD5.items():
        assert hashlib.md5((data_dir / "MNIST" / "raw" / name).read_bytes()).hexdigest() == md5
    for packed in (data_dir / "MNIST" / "raw").glob("*.gz"):
        packed.unlink()  # not needed again
    train, _ = load_images("MNIST", data_dir, train=True)
    assert train.pixels.shape == (60_000, 1, 28, 28)


@pytest.mark.parametrize("damage", ["cut short", "one byte changed", "other content"])
def test_a_damaged_packed_file_is_named(data_dir, damage):
    packed = data_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    content = bytearray(packed.read_bytes())
    if damage == "cut short":
        content = content[:1000]
    elif damage == "one byte changed":
        content[5000] ^= 255
    else:
        content = gzip.compress(b"hello")
    packed.write_bytes(content)
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        load_images("MNIST", data_dir, train=False)
    assert not packed.with_suffix("").exists()


def test_a_damaged_unpacked_file_is_named(data_dir):
    load_images("MNIST", data_dir, train=False)
    unpacked = data_dir / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(unpacked.read_bytes())
    content[100] ^= 1
    unpacked.write_bytes(content)
    with pytest.raises(InputError, match="train-labels-idx1-ubyte is damaged"):
        load_images("MNIST", data_dir, train=True)


def test_a_download_that_fails_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    for proxy in ("http_proxy", "https_proxy"):  # downloads fail at once, wherever the tests run
        monkeypatch.setenv(proxy, "http://127.0.0.1:1")
    for data_dir in (tmp_path, tmp_path / "data"):
        with pytest.raises(InputError, match="refused"):
            load_images("KMNIST", data_dir, train=True)
        assert not list(tmp_path.iterdir())


def test_colour_images_become_channels_first(monkeypatch):
    class CIFAR10:
        """As torchvision's: an array (N, 32, 32, 3) and a list of labels."""

        def __init__(self, root, train, download):
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3)
            self.targets, self.classes = [3, 9], list("abcdefghij")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR10)
    images, preparation = load_images("CIFAR10", "anywhere", train=True)
    assert images.pixels.shape == (2, 3, 32, 32) and images.labels.tolist() == [3, 9]
    assert preparation[:3] == (tuple("abcdefghij"), (32, 32), 3)
    assert images.pixels[1, 2, 5, 7] == CIFAR10(None, None, None).data[1, 5, 7, 2]


def test_training_and_validation_images_are_disjoint_and_always_the_same():
    n = 60_000
    images = Images(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n))
    train, validation = map(images.take, split_off(images.labels, stratified=False))
    assert len(validation.labels) == 5000 and len(train.labels) == 55_000
    assert not set(train.labels.tolist()) & set(validation.labels.tolist())
    assert torch.equal(validation.labels, torch.arange(0, n, 12))
    assert torch.equal(first_images(train, 300).labels, train.labels[:300])
    assert torch.equal(split_off(torch.zeros(50_000), stratified=False)[1], torch.arange(0, 50_000, 10))  # CIFAR-10


# --- the reader's own ---------------------------------------------------------------------------------------------

COLORS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}


def picture(color=(200, 30, 30), size=(40, 40), mode="RGB") -> Image.Image:
    """A colour with a black edge, or it would be blank."""
    image = Image.new("RGB", size, color)
    image.paste((0, 0, 0), (0, 0, size[0], size[1] // 5))
    return image.convert(mode)


def write_folder(root: Path, n: int = 10, size=(40, 40), classes=tuple(COLORS)) -> Path:
    """A folder of pictures for each class; each picture is the class's colour, and its number as a brightness."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture(tuple(c * (i + 1) // (n + 1) for c in COLORS.get(name, (90, 90, 90))), size).save(
                root / name / f"{i:03}.png"
            )
    return root


def write_npz(file: Path, n: int = 20, shape=(8, 8), labels=None, **others) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = np.arange(n) % 2 if labels is None else labels
    np.savez(file, **{"train_images": images, "train_labels": labels} | others)
    return file


def load(path: Path, image_size: int | None = None):
    train, val, test, preparation = own_images(path, image_size)
    return train, val, test, len(preparation.classes)


def test_a_folder_is_split_by_class_always_alike(tmp_path, capsys):
    root = write_folder(tmp_path / "pictures", n=20)
    train, val, test, num_classes = load(root)
    assert num_classes == 3 and train.pixels.shape == (36, 3, 40, 40) and train.pixels.dtype == torch.uint8
    assert [p.labels.bincount().tolist() for p in (train, val, test)] == [[12] * 3, [4] * 3, [4] * 3]
    everything = torch.cat([p.pixels for p in (train, val, test)])
    assert len(everything.flatten(1).unique(dim=0)) == 60  # disjoint, and nothing lost
    for part in (train, val, test):  # the brightest channel tells the class
        assert torch.equal(part.pixels.amax((2, 3)).argmax(1), 2 - part.labels)
    assert len(train.labels[:15].unique()) == 3  # the first images are of all classes
    again = load(root)
    assert all(
        torch.equal(a, b) for x, y in zip((train, val, test), again[:3], strict=True) for a, b in zip(x, y, strict=True)
    )
    said = capsys.readouterr().out
    assert (
        "3 classes (blue, green, red), images of 40 x 40 RGB pixels, 36 to train on, 12 for validation, 12 for the test"
        in said
    )
    assert "a fifth of each class, because there is no test part" in said


@pytest.mark.parametrize("n, held_out", [(100, 30), (3000, 900), (5000, 1000), (20_000, 2000), (80_000, 5000)])
def test_more_is_held_out_of_a_small_set(n, held_out):
    labels = torch.arange(n) % 2
    train, val = split_off(labels)
    assert (len(train), len(val)) == (n - held_out, held_out)
    assert labels[val].bincount().tolist() == [held_out // 2] * 2


def test_given_parts_are_used_as_such(tmp_path, capsys):
    root = tmp_path / "pictures"
    for part, n in (("train", 6), ("val", 2), ("test", 3)):
        write_folder(root / part, n)
    train, val, test, _ = load(root)
    assert [len(p.labels) for p in (train, val, test)] == [18, 6, 9] and "fifth" not in capsys.readouterr().out
    shutil.rmtree(root / "val")
    train, val, test, _ = load(root)
    assert [len(p.labels) for p in (train, val, test)] == [15, 3, 9]


def test_an_npz_file_is_read_as_the_same_pictures_in_a_folder(tmp_path):
    root = write_folder(tmp_path / "pictures")
    files = sorted(root.rglob("*.png"))
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = np.array([[file.parent.name] for file in files])
    np.savez(tmp_path / "same.npz", train_images=arrays, train_labels=labels)
    for ours, other in zip(load(root)[:3], load(tmp_path / "same.npz")[:3], strict=True):
        assert torch.equal(ours.pixels, other.pixels) and torch.equal(ours.labels, other.labels)
    np.savez(tmp_path / "x.npz", train_images=arrays[..., :1], train_labels=1 + np.arange(30) % 3)
    train, *_, num_classes = load(tmp_path / "x.npz")
    assert train.pixels.shape[1:] == (1, 40, 40) and num_classes == 3 and set(train.labels.tolist()) == {0, 1, 2}


def test_pictures_of_all_kinds_become_one_size(tmp_path, capsys):
    root = write_folder(tmp_path / "pictures", n=4, size=(30, 20))
    picture().save(root / "red" / "a.gif")
    picture((200, 90, 30), size=(50, 40), mode="CMYK").save(root / "red" / "b.jpg")
    picture((90, 90, 90), mode="LA").save(root / "red" / "c.png")
    Image.fromarray(np.linspace(0, 60_000, 81).astype(np.uint16).reshape(9, 9)).save(root / "red" / "d.png")
    Image.new("L", (12_000, 12_000), 77).save(root / "green" / "large.png")
    (root / "green" / "notes.txt").write_text("no picture")
    train, val, test, _ = load(root)
    everything = torch.cat([p.pixels for p in (train, val, test)])
    assert everything.shape == (17, 3, 32, 32)
    means = {tuple(pixels.float().mean((1, 2)).round().int().tolist()) for pixels in everything}
    assert (77, 77, 77) in means and {(127,) * 3, (128,) * 3} & means  # the large one, and the mean of the ramp
    said = capsys.readouterr().out
    assert "pictures of 9 x 9 to 12000 x 12000 pixels are resized to 32 x 32 (--image_size)" in said
    assert "left out, no picture (1): green/notes.txt" in said
    assert load(root, 16)[0].pixels.shape[1:] == (3, 16, 16)
    for file in root.rglob("*.*"):
        file.unlink()
    for name in COLORS:
        for i in range(3):
            picture((50 * i + 90,) * 3, mode="L").save(root / name / f"{i}.png")
    assert load(root)[0].pixels.shape[1:] == (1, 40, 40)  # grey


def broken(root: Path, what: str) -> Path:
    """An image set with something wrong; returns the path to give."""
    if what == "one class":
        [shutil.rmtree(root / name) for name in ("red", "green")]
    elif what == "one picture a class":
        [file.unlink() for file in root.rglob("*.png") if file.name != "000.png"]
    elif what == "nothing":
        shutil.rmtree(root)
        root.mkdir()
    elif what == "other classes":
        [
            write_folder(root / part, classes=classes)
            for part, classes in (("train", ("red", "blue")), ("test", ("red", "yellow")))
        ]
    return root


@pytest.mark.parametrize(
    "what, message",
    [
        ("one class", "one class only, blue"),
        ("one picture a class", "class blue has 1 of the pictures"),
        ("nothing", "a folder of pictures a class"),
        ("other classes", "class yellow has 0 of the pictures to train on (it is in test only)"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, what, message):
    with pytest.raises(InputError) as error:
        load(broken(write_folder(tmp_path / "pictures"), what))
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"train_images": np.full((20, 8, 8), 0.1j)}, "train_images must be numbers, uint8 at best"),
        ({"train_images": np.zeros((20, 8), np.uint8)}, "of shape (N, H, W)"),
        ({"train_images": np.zeros((20, 8, 8, 2), np.uint8)}, "(20, 8, 8, 2)"),
        ({"train_labels": np.arange(19) % 2}, "for each of the 20 images"),
        ({"train_labels": np.linspace(0, 1, 20)}, "a whole number or a word"),
        ({"train_labels": np.array([{}] * 20)}, "no .npz file that can be read"),
        ({"test_images": np.zeros((2, 8, 8), np.uint8)}, "needs both test_images and test_labels"),
        (
            {"test_images": np.zeros((2, 8, 8), np.uint8), "test_labels": np.array([0, 7])},
            "class 7 has 0 of the pictures to train on",
        ),
        ({"train_labels": np.zeros(20, int)}, "one class only, 0"),
    ],
)
def test_what_is_wrong_with_an_npz_file_is_one_line(tmp_path, arrays, message):
    with pytest.raises(InputError) as error:
        load(write_npz(tmp_path / "some.npz", **arrays))
    assert message in str(error.value) and "\n" not in str(error.value) and "some.npz" in str(error.value)


def test_a_file_that_is_no_npz_is_one_line(tmp_path):
    for content in (b"", b"hello", write_npz(tmp_path / "whole.npz").read_bytes()[:700]):
        (tmp_path / "some.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"some\.npz is no \.npz file"):
            load(tmp_path / "some.npz")


def test_labels_from_1_to_3_are_three_classes(tmp_path):
    train, val, test, num_classes = load(write_npz(tmp_path / "some.npz", n=30, labels=1 + np.arange(30) % 3))
    assert num_classes == 3 and {*train.labels.tolist(), *val.labels.tolist(), *test.labels.tolist()} == {0, 1, 2}


def test_other_images_have_another_fingerprint(tmp_path):
    def data(n):
        return search_data(str(write_npz(tmp_path / "some.npz", n=n)), Path("data"))

    assert fingerprint(data(20)) == fingerprint(data(20)) != fingerprint(data(22))


def test_search_and_evaluation_share_no_test_image(tmp_path):
    path = str(write_npz(tmp_path / "some.npz", n=100))
    search, final = search_data(path, Path("data")), evaluation_data(path, Path("data"))
    searched = {image.numpy().tobytes() for image in (*search.train.pixels, *search.held_out.pixels)}
    trained, tested = ({image.numpy().tobytes() for image in part.pixels} for part in (final.train, final.held_out))
    assert searched == trained and not trained & tested and len(tested) == 20 and len(search.held_out.labels) == 24


def test_a_photo_is_turned_upright(tmp_path):
    """As its EXIF orientation says: 6 is a quarter turn clockwise, and the left half comes to the top."""
    root = write_folder(tmp_path / "photos", n=3)
    photo, exif = picture((0, 0, 0)), Image.Exif()
    photo.paste((255, 255, 255), (0, 0, 20, 40))
    exif[0x0112] = 6
    photo.save(root / "red" / "photo.png", exif=exif)
    everything = torch.cat([part.pixels for part in load(root)[:3]])
    (upright,) = (pixels for pixels in everything if pixels.max() == 255 and pixels.min() == 0)
    assert upright[:, :20].min() == 255 and upright[:, 20:].max() == 0


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_photos_are_as_large_as_they_are_upright(tmp_path, capsys, kind):
    """A photo that lies on its side among others of its stored size has another size, and none is stretched."""
    exif = Image.Exif()
    exif[0x0112] = 8
    photos = {}
    for i, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for number in range(3):
            file = tmp_path / name / f"{number}.{kind}"
            photos[file] = picture((50 * number + 90, 99, 200 * i), size=(30, 20))
            photos[file].save(file)
    turned = tmp_path / "two" / f"4.{kind}"
    photos[turned] = picture((0, 200, 0), size=(30, 20))
    photos[turned].save(turned, exif=exif)
    assert load(tmp_path)[0].pixels.shape[2:] == (32, 32)
    assert "pictures of 20 x 30 to 30 x 20 pixels are resized" in capsys.readouterr().out
    for file, photo in photos.items():
        photo.save(file, exif=exif)
    assert load(tmp_path)[0].pixels.shape[2:] == (30, 20)
