"""Image sets: torchvision's, or the reader's own; each is one uint8 tensor in memory.

data = search_data("MNIST", Path("data"))     # what a search sees: data.train, data.held_out, data.num_classes
data = search_data("pictures", Path("data"))  # a folder of pictures, one folder for each class; or an .npz file
"""

import contextlib
import gzip
import hashlib
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from utils import InputError, write_atomically

BUILT_IN = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10")
HELD_OUT = 5000  # training images that give the reward (§4.1), the same ones in every run


class Images(NamedTuple):
    pixels: Tensor  # (N, C, H, W) uint8: the whole set is one tensor in memory
    labels: Tensor  # (N,) int64


class Data(NamedTuple):
    train: Images
    held_out: Images  # what a network is measured on
    num_classes: int


def search_data(name: str, data_dir: Path, train_images: int | None = None, image_size: int | None = None) -> Data:
    """What a search sees: training images only, some of them held out for the reward."""
    if name in BUILT_IN:
        images, num_classes = load_images(name, data_dir, train=True)
        train, held_out = hold_out(images)
    else:
        train, held_out, _, num_classes = own_images(Path(name), image_size)
    return Data(first_images(train, train_images), held_out, num_classes)


def evaluation_data(
    name: str,
    data_dir: Path,
    train_images: int | None = None,
    image_size: int | None = None,
    settings: dict | None = None,
) -> Data:
    """What `--mode evaluate` sees: all training images, or the first `train_images`, and the test set.

    InputError if a search with these `settings` saw other images.
    """
    if name in BUILT_IN:
        train, num_classes = load_images(name, data_dir, train=True)
        test, _ = load_images(name, data_dir, train=False)
    else:
        train, val, test, num_classes = own_images(Path(name), image_size)
        if settings and settings.get("images"):
            seen = Data(first_images(train, settings.get("train_images")), val, num_classes)
            if fingerprint(seen) != settings["images"]:
                raise InputError(f"{name} has other images than the search in this --run_dir had: choose another one")
        train = Images(*map(torch.cat, zip(train, val, strict=True)))
    return Data(first_images(train, train_images), test, num_classes)


def short_name(dataset: str) -> str:
    """What run folders and titles call a data set: the name of a built-in one, or of the folder or file."""
    return dataset if dataset in BUILT_IN else Path(dataset).resolve().name.removesuffix(".npz")


def fingerprint(data: Data) -> str:
    """A digest of all images and labels: with other ones a search is another search."""
    digest = hashlib.sha256()
    for tensor in (*data.train, *data.held_out):
        digest.update(str(tensor.shape).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def first_images(images: Images, n: int | None) -> Images:
    """The first `n` images; InputError if there are fewer."""
    if n is not None and n > len(images.labels):
        raise InputError(f"--train_images {n}: there are {len(images.labels):,} training images; ask for fewer")
    return Images(*(tensor[:n] for tensor in images))


def choose(images: Images, chosen: Tensor) -> tuple[Images, Images]:
    """The other images, and the chosen ones; `chosen` (N,) is a mask."""
    return Images(*(tensor[~chosen] for tensor in images)), Images(*(tensor[chosen] for tensor in images))


def in_shared_memory(data: Data) -> Data:
    """Move images to memory that worker processes share."""
    try:
        for tensor in (*data.train, *data.held_out):
            tensor.share_memory_()
    except RuntimeError as error:
        raise InputError(f"not enough shared memory for the images ({error})") from None
    return data


# --- torchvision's ------------------------------------------------------------------------------------------------

MNIST_MD5 = {  # of the unpacked files: a .gz may be compressed in many ways; other data sets have files of these names
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_images(name: str, data_dir: Path, train: bool) -> tuple[Images, int]:
    """The training or the test set, unpacked or downloaded, and the number of classes; InputError without it."""
    folder, files = Path(data_dir), ["cifar-10-python.tar.gz"]
    if name != "CIFAR10":
        folder, files = folder / name / "raw", [f"{file}.gz" for file in MNIST_MD5]
        unpack(folder, checked=name == "MNIST")
    import torchvision  # here, because every worker process imports this file and none needs it

    try:
        dataset = getattr(torchvision.datasets, name)(data_dir, train=train, download=True)  # what is not there yet
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason, what = " ".join(dict.fromkeys((lines[0], lines[-1]))), ", ".join(files)
        for made in (folder, folder.parent) if folder != Path(data_dir) else ():
            with contextlib.suppress(OSError):  # not empty
                made.rmdir()
        raise InputError(f"{name} can't be read or downloaded ({reason}): put {what} into {folder}/") from None
    pixels, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)  # (N, C, H, W)
    return Images(pixels.contiguous(), labels), len(dataset.classes)


def unpack(folder: Path, checked: bool) -> None:
    """Unpack the IDX files in `folder` whose unpacked form is not there yet, if `checked` by MNIST's MD5."""
    for name, md5 in MNIST_MD5.items():
        target, packed = folder / name, folder / f"{name}.gz"
        if target.exists():
            if checked and hashlib.md5(target.read_bytes()).hexdigest() != md5:
                raise InputError(f"{target} is damaged (its MD5 is wrong): delete it, it is unpacked again")
        elif packed.exists():
            try:
                content = gzip.decompress(packed.read_bytes())
                if checked and hashlib.md5(content).hexdigest() != md5:
                    raise ValueError("MD5 is wrong")
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise InputError(f"{packed} is damaged ({error}): replace it with an undamaged copy") from None
            write_atomically(target, content)


def hold_out(images: Images) -> tuple[Images, Images]:
    """Split off every n-th image for validation, 5,000 in all."""
    index = torch.arange(len(images.labels))
    every = len(images.labels) // HELD_OUT
    return choose(images, (index % every == 0) & (index < every * HELD_OUT))


# --- the reader's own ---------------------------------------------------------------------------------------------

IMAGE_SIZE = 32  # pixels, to which pictures of different sizes, or above LARGE, are brought without --image_size
LARGE = 64
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")  # others may run other programs
GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "F"}  # Pillow's modes without colour
Pictures = tuple[Sequence, np.ndarray]  # files or uint8 arrays (H, W) or (H, W, 3), and the class of each


def own_images(path: Path, image_size: int | None) -> tuple[Images, Images, Images, int]:
    """Training, validation and test images of a folder or an .npz file, and the number of classes; says what it found.

    Without a test part a fixed fifth of each class is the test set; without a validation part a fixed tenth of the
    rest, at most 5,000, is held out. InputError, naming the file, for what is no image set.
    """
    pictures, classes = read_folder(path) if path.is_dir() else read_npz(path)
    parts = decode(path, pictures, image_size)
    missing = [part for part in ("test", "val") if part not in parts]
    counts = torch.bincount(parts["train"].labels, minlength=len(classes))
    if len(classes) < 2:
        raise InputError(f"{path} has one class only, {classes[0]}: there is nothing to tell apart")
    if counts.min() <= len(missing):
        few = f"class {classes[counts.argmin()]} has {counts.min()} of the pictures"
        raise InputError(f"{path}: {few}, training, validation and test need one each: add some, or remove the class")
    if "test" in missing:
        parts["train"], parts["test"] = split_off(parts["train"], 1 / 5)
    if "val" in missing:
        parts["train"], parts["val"] = split_off(parts["train"], min(1 / 10, HELD_OUT / len(parts["train"].labels)))
    order = torch.randperm(len(parts["train"].labels), generator=torch.Generator().manual_seed(0))
    parts["train"] = Images(*(tensor[order] for tensor in parts["train"]))  # the first ones are of all classes then
    train, val, test = (parts[part] for part in ("train", "val", "test"))
    shape = " x ".join(map(str, train.pixels.shape[1:]))
    n = "{:,} to train on, {:,} for validation, {:,} for the test".format(*(len(p.labels) for p in (train, val, test)))
    fifth = ", a fifth of each class, because there is no test part" if "test" in missing else ""
    names = ", ".join(classes[:10]) + ", ..." * (len(classes) > 10)
    print(f"{path}: {len(classes)} classes ({names}), images of {shape}, {n}{fifth}")
    return train, val, test, len(classes)


def split_off(images: Images, share: float) -> tuple[Images, Images]:
    """The rest, and a share of each class, at least one image: evenly spaced, always the same ones."""
    chosen = torch.zeros(len(images.labels), dtype=torch.bool)
    for label in images.labels.unique():
        index = (images.labels == label).nonzero()[:, 0]
        n = max(1, int(share * len(index)))
        chosen[index[torch.arange(n) * len(index) // n]] = True
    return choose(images, chosen)


def read_folder(root: Path) -> tuple[dict[str, Pictures], list[str]]:
    """The parts of a folder, `train` and perhaps `val` and `test`, and the names of the classes.

    It holds a folder of pictures for each class (as torchvision's ImageFolder), or train/, val/ and test/ that do.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, DatasetFolder  # here: worker processes need it not

    folders = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    folders = folders if "train" in folders else {"train": root}
    parts, classes = {}, []
    for part, folder in folders.items():
        try:
            found = DatasetFolder(str(folder), Image.open, (*IMG_EXTENSIONS, ".gif"))
        except FileNotFoundError as error:
            raise InputError(
                f"{str(error).split('. Supp')[0]} in {folder}: it needs a folder of pictures a class"
            ) from None
        if classes and found.classes != classes:
            differ = ", ".join(sorted({*found.classes} ^ {*classes}))
            raise InputError(f"{folder} and {folders['train']} have different classes: {differ}")
        classes, files = found.classes, [Path(file) for file, _ in found.samples]
        if others := sorted({p for name in classes for p in (folder / name).rglob("*") if p.is_file()} - {*files}):
            print(
                f"{folder}: left out what is no picture: {others[0]}"
                + f", and {len(others) - 1} more" * (len(others) > 1)
            )
        parts[part] = files, np.array(found.targets)
    return parts, classes


def read_npz(file: Path) -> tuple[dict[str, Pictures], list[str]]:
    """The parts of a file in MedMNIST's layout, and the labels, in their order, as names of the classes.

    `train_images` (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8 and `train_labels` (N,) or (N, 1), numbers or words;
    perhaps the same for `val` and `test`.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files if name.endswith(("_images", "_labels"))}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} is no .npz file that can be read: {reason}") from None
    parts, classes = {}, np.array([])
    for part in ("train", "val", "test"):
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if part != "train" and images is None and labels is None:
            continue
        if images is None or labels is None:
            raise InputError(f"{file} needs both {part}_images and {part}_labels")
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (1,), (3,)) or images.ndim < 3 or not images.size:
            raise InputError(
                f"{file}: {part}_images must be uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if labels.shape not in ((len(images),), (len(images), 1)) or labels.dtype.kind not in "iubUS":
            raise InputError(
                f"{file}: {part}_labels must be a whole number or a word for each of the {len(images)} images, "
                f"not {labels.dtype} of shape {labels.shape}"
            )
        classes = np.unique(labels) if part == "train" else classes
        if unknown := sorted({*labels.flat} - {*classes}):
            raise InputError(f"{file}: {part}_labels has {unknown[0]}, which train_labels has not")
        images = images[..., 0] if images.shape[3:] == (1,) else images
        parts[part] = images, np.searchsorted(classes, labels.reshape(-1))
    return parts, list(map(str, classes))


def decode(path: Path, parts: dict[str, Pictures], image_size: int | None) -> dict[str, Images]:
    """All pictures in one size, grey if all of them are."""
    everything = [picture for pictures, _ in parts.values() for picture in pictures]
    headers = {from_picture(picture, lambda image: (image.size, image.mode)) for picture in everything}
    sizes, channels = {size for size, _ in headers}, 1 if {mode for _, mode in headers} <= GREY else 3
    size = (image_size or IMAGE_SIZE,) * 2  # width, height
    if not image_size and len(sizes) == 1 and max(max(sizes)) <= LARGE:
        (size,) = sizes
    if sizes != {size}:
        small, large = ("{} x {}".format(*extreme(sizes, key=math.prod)) for extreme in (min, max))
        print(f"{path}: pictures of {small} to {large} pixels are resized to {size[0]} x {size[1]} (--image_size)")
    decoded = {}
    with tqdm(total=len(everything), unit=" pictures", unit_scale=True, dynamic_ncols=True) as bar:
        for part, (pictures, labels) in parts.items():
            pixels = np.empty((len(labels), size[1], size[0], channels), np.uint8)
            for i, picture in enumerate(pictures):
                pixels[i] = from_picture(picture, partial(fit, size, channels)).reshape(pixels.shape[1:])
                bar.update()
            decoded[part] = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))
    return decoded


def from_picture(picture: Path | np.ndarray, read: Callable[[Image.Image], Any]) -> Any:
    """What `read` returns for a picture, a file or an array; InputError that names a file which can't be read."""
    if not isinstance(picture, Path):
        return read(Image.fromarray(picture))
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(picture, formats=FORMATS) as image:
            return read(image)
    except Exception as error:  # at a damaged file decoders raise whatever they run into
        raise InputError(f"{picture} can't be read as a picture: {' '.join(str(error).split())}") from None


def fit(size: tuple[int, int], channels: int, image: Image.Image) -> np.ndarray:
    """Pixels of a picture upright, in this size (width, height) and with so many channels."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image if image.size == size else image.resize(size, reducing_gap=3.0))
