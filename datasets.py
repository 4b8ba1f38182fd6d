"""Image sets: torchvision's, or the reader's own; each is one uint8 tensor in memory.

data = search_data("MNIST", Path("data"))     # what a search sees: data.train, data.held_out, data.num_classes
data = search_data("pictures", Path("data"))  # a folder of pictures, one folder for each class; or an .npz file
"""

import gzip
import hashlib
import math
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from utils import InputError, write_atomically

BUILT_IN = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10")
HELD_OUT = 5000  # training images that give the reward (§4.1), the same ones in every run


class Images(NamedTuple):
    pixels: Tensor  # (N, C, H, W) uint8: the whole set is one tensor in memory
    labels: Tensor  # (N,) int64

    def take(self, index: Tensor | slice) -> "Images":
        return Images(self.pixels[index], self.labels[index])


class Preparation(NamedTuple):
    """How a picture becomes pixels, and what the classes are called: it travels with the network."""

    classes: tuple[str, ...]
    image_size: tuple[int, int]  # width, height
    channels: int  # 1: grey, 3: RGB
    grey_range: tuple[float, float] = (0, 65535)  # of grey with more than 8 bits: what becomes 0, and 255


class Data(NamedTuple):
    train: Images
    held_out: Images  # what a network is measured on
    num_classes: int
    preparation: Preparation | None = None


def search_data(name: str, data_dir: Path, train_images: int | None = None, image_size: int | None = None) -> Data:
    """What a search sees: training images only, some of them held out for the reward."""
    if name in BUILT_IN:
        images, preparation = load_images(name, data_dir, train=True)
        train, held_out = map(images.take, split_off(torch.zeros_like(images.labels)))  # every twelfth of MNIST
    else:
        train, held_out, _, preparation = own_images(Path(name), image_size)
    return Data(first_images(train, train_images), held_out, len(preparation.classes), preparation)


def evaluation_data(
    name: str, data_dir: Path, train_images: int | None = None, image_size: int | None = None, run: dict | None = None
) -> Data:
    """What `--mode evaluate` sees: all training images, and the test set; InputError if `run` searched on others."""
    if name in BUILT_IN:
        train, preparation = load_images(name, data_dir, train=True)
        test, _ = load_images(name, data_dir, train=False)
    else:
        train, val, test, preparation = own_images(Path(name), image_size)
        if run and run.get("images"):
            seen = Data(train.take(slice(run.get("train_images"))), val, len(preparation.classes))
            if fingerprint(seen) != run["images"]:
                raise InputError(f"{name} has other images than the search in this --run_dir had: choose another one")
        train = Images(*map(torch.cat, zip(train, val, strict=True)))
    return Data(first_images(train, train_images), test, len(preparation.classes), preparation)


def short_name(dataset: str) -> str:
    """What run folders and titles call a data set: the name of a built-in one, or of the folder or file."""
    return dataset if dataset in BUILT_IN else printable(re.sub(r"(?i)\.npz$", "", Path(dataset).resolve().name))


def printable(name: str) -> str:
    """A file's name with what is no Unicode written out: pictures and JSON refuse it."""
    return name.encode(errors="backslashreplace").decode()


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
    return images.take(slice(n))


def split_off(groups: Tensor, share: float | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the rest, and of a share of each group (N,), at least one: evenly spaced, always the same ones."""
    n, chosen = len(groups), torch.zeros(len(groups), dtype=torch.bool)
    share = share or min(3 / 10, max(1000 / n, 1 / 10), HELD_OUT / n)  # of few images, more tell networks apart better
    for group in groups.unique():
        index = (groups == group).nonzero()[:, 0]
        few = max(1, int(share * len(index)))
        chosen[index[torch.arange(few) * len(index) // few]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def in_shared_memory(data: Data) -> Data:
    """Move images to memory that worker processes share."""
    try:
        for tensor in (*data.train, *data.held_out):
            tensor.share_memory_()
    except RuntimeError as error:
        remedy = "give /dev/shm more room (in Docker with --shm-size), or use fewer or smaller images"
        raise InputError(f"not enough shared memory for the images ({error}): {remedy}") from None
    return data


# --- torchvision's ------------------------------------------------------------------------------------------------

MNIST_MD5 = {  # of the unpacked files: a .gz may be compressed in many ways; other data sets have files of these names
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_images(name: str, data_dir: Path, train: bool) -> tuple[Images, Preparation]:
    """The training or the test set, unpacked or downloaded, and what it consists of; InputError without it."""
    folder, files = Path(data_dir), "cifar-10-python.tar.gz"
    if name != "CIFAR10":
        folder, files = folder / name / "raw", ", ".join(f"{file}.gz" for file in MNIST_MD5)
        unpack(folder, checked=name == "MNIST")
    import torchvision  # here, because every worker process imports this file and none needs it

    new = [made for made in (folder, *folder.parents) if not made.exists()]
    try:
        dataset = getattr(torchvision.datasets, name)(data_dir, train=train, download=True)  # what is not there yet
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        for made in new:
            if made.exists() and not any(made.iterdir()):
                made.rmdir()
        reason = one_line(error)
        raise InputError(f"{name} can't be read or downloaded ({reason}): put {files} into {folder}/") from None
    pixels, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)  # (N, C, H, W)
    _, channels, height, width = pixels.shape
    return Images(pixels.contiguous(), labels), Preparation(tuple(dataset.classes), (width, height), channels)


def unpack(folder: Path, checked: bool) -> None:
    """Unpack the IDX files in `folder` that are packed only; InputError for damaged ones, `checked` by MNIST's MD5."""
    for name, md5 in MNIST_MD5.items():
        file = folder / name if (folder / name).exists() else folder / f"{name}.gz"
        if not file.exists():
            continue
        content = file.read_bytes()
        try:
            content = gzip.decompress(content) if file.suffix else content
            if checked and hashlib.md5(content).hexdigest() != md5:
                raise ValueError("its MD5 is wrong")
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{file} is damaged ({error}): remove it, or replace it by an undamaged copy") from None
        if file.suffix:
            write_atomically(folder / name, content)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- the reader's own ---------------------------------------------------------------------------------------------

IMAGE_SIZE = 32  # pixels, to which pictures of different sizes, or above LARGE, are brought without --image_size
LARGE = 64
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")  # others may run other programs
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
PART_OF = {name: part for part, names in PARTS.items() for name in names}  # names as people write them
RUNS = "a run of this program"
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "lost+found"}  # what systems leave in folders, beside hidden files


class Picture(NamedTuple):
    name: str
    open: Callable[[], Image.Image]
    label: str  # the name of its class
    part: str


def own_images(path: Path, image_size: int | None) -> tuple[Images, Images, Images, Preparation]:
    """Training, validation and test images of a folder or an .npz file; says what it found and what it left out."""
    pictures = read_folder(path) if path.is_dir() else read_npz(path)
    classes = sorted({picture.label for picture in pictures}, key=natural)
    missing_parts(path, pictures, classes)  # before they are decoded, which takes long
    pictures, pixels, preparation = decode(path, pictures, image_size)
    missing = missing_parts(path, pictures, classes)
    number = {name: i for i, name in enumerate(classes)}
    images = Images(pixels, torch.tensor([number[picture.label] for picture in pictures]))
    part_of = np.array([picture.part for picture in pictures])
    train, val, test = (torch.from_numpy((part_of == part).nonzero()[0]) for part in PARTS)  # indices
    for part in sorted(PARTS.keys() - missing):
        labels = {picture.label for picture in pictures if picture.part == part}
        note(path, f"no picture for {part}, class left out there", [name for name in classes if name not in labels])
    if "test" in missing:
        train, test = (train[index] for index in split_off(images.labels[train], 1 / 5))
    if "val" in missing:
        train, val = (train[index] for index in split_off(images.labels[train]))
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]  # the first: of all classes
    fifth = ", a fifth of each class, because there is no test part" if "test" in missing else ""
    n = f"{len(train):,} to train on, {len(val):,} for validation, {len(test):,} for the test{fifth}"
    kind = "{} x {} {} pixels".format(*preparation[0], "grey" if preparation[1] == 1 else "RGB")
    print(f"{path}: {len(classes)} classes ({listed(classes, 10)}), images of {kind}, {n}")
    return *map(images.take, (train, val, test)), Preparation(tuple(map(printable, classes)), *preparation)


def missing_parts(path: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> set[str]:
    """The parts without pictures; InputError if a class has too few pictures to learn it."""
    missing = PARTS.keys() - {picture.part for picture in pictures}
    counts = Counter(picture.label for picture in pictures if picture.part == "train")
    least = min(classes, key=lambda name: counts[name])
    if len(classes) < 2:
        raise InputError(f"{path} has one class only, {least}: there is nothing to tell apart")
    if counts[least] <= len(missing):
        few = f"class {least} has {counts[least]} of the pictures to train on"
        raise InputError(f"{path}: {few}, training, validation and test need one each: add some, or remove the class")
    return missing


def note(path: Path, what: str, names: Sequence) -> None:
    """Print what holds for how many, and the names of the first, if there are any."""
    if names:
        print(f"{path}: {what} ({len(names):,}): {listed(names, 5)}")


def listed(names: Sequence, most: int) -> str:
    return ", ".join(map(str, names[:most])) + ", ..." * (len(names) > most)


def natural(name: str) -> tuple:
    """A key that sorts names as people do: 2 before 10."""
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(^-?\d+|\d+)", name))], name


def read_folder(root: Path) -> list[Picture]:
    """The pictures of a folder that has one for each class (as torchvision's ImageFolder), or parts that do."""
    folders, left_out = walk(root)
    tops = [folder.parts[0] for folder in folders if len(folder.parts) > 1]
    parts = {top: PART_OF[top.lower()] for top in tops if top.lower() in PART_OF}
    if parts and sorted(parts.values()) != sorted({"train", *parts.values()}):
        names = ", ".join(parts)
        raise InputError(f"{root} has the parts {names}: it needs one called train, and at most one val and one test")
    depth = 2 if parts else 1  # of a class's folder
    found = defaultdict(list)  # what is in it or below
    for folder, files in folders.items():
        if parts and folder.parts and folder.parts[0] not in parts:
            left_out["no part with a folder for each class"].append(Path(folder.parts[0]))
        elif len(folder.parts) < depth:
            left_out["in no folder of a class"] += files
        else:
            found[folder.parts[:depth]] += files
    left_out["no picture in it"] = [Path(*place) for place, files in found.items() if not files]
    ours = {run.parent for run in left_out[RUNS]}
    for what, paths in left_out.items():
        note(root, f"left out, {what}", [path for path in dict.fromkeys(paths) if path not in ours])
    pictures = []
    for place, files in sorted(found.items(), key=lambda item: natural(item[0][-1])):
        for file in sorted(files):
            image = partial(Image.open, root / file, formats=FORMATS)
            pictures.append(Picture(str(file), image, place[-1], parts.get(place[0], "train")))
    classes = {picture.label for picture in pictures}
    named = sorted(name for name in classes if name.lower() in PART_OF and not parts)
    if len(classes) == len(named):
        loose = f", not pictures in {' and '.join(named)} themselves" if named else ""
        raise InputError(f"{root} needs a folder of pictures a class, or train/, val/ and test/ that have them{loose}")
    note(root, "called like a part, but without folders, so taken for a class", named)
    return pictures


def walk(root: Path) -> tuple[dict[Path, list[Path]], dict[str, list[Path]]]:
    """The pictures of each folder, and what is left out and why; every real folder once, those behind links last."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    folders, left_out, seen, todo, denied = {}, defaultdict(list), set(), [root], []
    for top in todo:  # which grows
        for name, below, files in os.walk(top, onerror=denied.append):
            folder, real = Path(name).relative_to(root), os.path.realpath(name)
            ours = folder.parts and any(re.fullmatch(r"children\.jsonl|best_child.*\.pt2", file) for file in files)
            if real in seen or ours:
                left_out[RUNS if ours else "read already, this is a link to it"].append(folder)
                below.clear()
                continue
            seen.add(real)
            hidden = {entry for entry in (*below, *files) if entry.startswith(".") or entry.lower() in SYSTEM}
            below[:] = sorted({*below} - hidden)
            paths = [folder / file for file in sorted({*files} - hidden)]
            folders[folder] = [path for path in paths if path.suffix.lower() in suffixes]
            left_out["no picture"] += [path for path in paths if path.suffix.lower() not in suffixes]
            left_out["hidden"] += [folder / entry for entry in sorted(hidden)]
            todo += [link for link in (Path(name, entry) for entry in below) if link.is_symlink()]
    left_out["can't be listed"] = [Path(error.filename).relative_to(root) for error in denied]
    return folders, left_out


def read_npz(file: Path) -> list[Picture]:
    """The pictures of a file in MedMNIST's layout: `train_images`, `train_labels`, perhaps those of val and test."""
    arrays, unused, name = {}, [], "it"
    try:
        with np.load(file, allow_pickle=False) as found:
            for name in found.files:
                part, _, kind = name.lower().rpartition("_")
                key = PART_OF.get(part), kind
                if part not in PART_OF or kind not in ("images", "labels") or key in arrays:
                    unused.append(name)
                else:
                    arrays[key] = np.asarray(found[name])
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = one_line(error) if zipfile.is_zipfile(file) else "it is cut off, or another kind of file"
        if "pickle" in reason:  # numpy would tell the reader to load it all the same
            reason = f"{name} holds Python objects, which may run code: save it as numbers or words, with .astype(str)"
        raise InputError(f"{file} is no .npz file that can be read: {reason}") from None
    note(file, "left out, not the images or labels of a part", unused)
    pictures = []
    for part in dict.fromkeys(("train", *(part for part, _ in arrays))):
        if not arrays.keys() >= {(part, "images"), (part, "labels")}:
            raise InputError(f"{file} needs both {part}_images and {part}_labels")
        images, labels = arrays[part, "images"], arrays[part, "labels"]
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (1,), (3,)) or images.ndim < 3 or not images.size:
            wanted = "uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            raise InputError(f"{file}: {part}_images must be {wanted}, not {images.dtype} of shape {images.shape}")
        if labels.shape not in ((len(images),), (len(images), 1)) or labels.dtype.kind not in "iubUS":
            wanted = f"a whole number or a word for each of the {len(images)} images"
            raise InputError(f"{file}: {part}_labels must be {wanted}, not {labels.dtype} of shape {labels.shape}")
        labels = np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels.astype(str)
        images = images[..., 0] if images.shape[3:] == (1,) else images
        for i, label in enumerate(labels.reshape(-1).tolist()):
            pictures.append(Picture(f"{part}_images[{i}]", partial(Image.fromarray, images[i]), label, part))
    return pictures


def decode(path: Path, pictures: Sequence[Picture], image_size: int | None) -> tuple[list[Picture], Tensor, tuple]:
    """The pictures that can be read, their pixels (N, C, H, W) in one size, and the other arguments of `prepare`."""
    bad: dict[str, str] = {}
    pictures, headers = zip(*read_all(path, pictures, header, bad), strict=True)
    names = [picture.name for picture in pictures]
    sizes, grey, alpha, coarse, extremes = zip(*headers, strict=True)
    keep = not image_size and len({*sizes}) == 1 and max(sizes[0]) <= LARGE
    width, height = size = sizes[0] if keep else (image_size or IMAGE_SIZE,) * 2
    if {*sizes} != {size}:
        by_area = sorted({*sizes}, key=lambda size: (math.prod(size), size))
        small, large = ("{} x {}".format(*size) for size in (by_area[0], by_area[-1]))
        print(f"{path}: pictures of {small} to {large} pixels are resized to {width} x {height} (--image_size)")
    note(path, "with an alpha channel, what is transparent becomes grey", [*compress(names, alpha)])
    note(path, "with 16 bits a colour, of which the upper 8 are used", [*compress(names, coarse)])
    low, high = min(chain(*extremes), default=0), max(chain(*extremes), default=65535)
    note(path, f"more than 8 bits, grey of {low:g} to {high:g} becomes 0 to 255", [*compress(names, extremes)])
    channels = 1 if all(grey) else 3
    preparation = size, channels, (low, high if high > low else low + 1)
    shape = len(pictures), channels, height, width
    try:
        if 2 * math.prod(shape) > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise MemoryError  # here, because the system may promise more than it has; twice, because they are shuffled
        pixels, good = np.empty(shape, np.uint8), []
    except MemoryError:
        need = f"{len(pictures):,} pictures of {width} x {height} need {math.prod(shape) / 1e9:,.3g} GB of memory"
        raise InputError(f"{path}: {need}, more than there is: choose a smaller --image_size") from None
    progress = tqdm(pictures, unit=" pictures", dynamic_ncols=True)
    for picture, array in read_all(path, progress, lambda image: prepare(image, *preparation), bad):
        pixels[len(good)] = array
        good.append(picture)
    pixels = pixels[: len(good)]
    faint = np.ptp(pixels, (2, 3)).max(1) < 16
    note(path, "left out, can't be read as a picture", sorted(bad))
    note(path, "nearly the same colour everywhere", [picture.name for picture in compress(good, faint)])
    return good, torch.from_numpy(pixels), preparation


def read_all(path: Path, pictures: Collection[Picture], read: Callable, bad: dict[str, str]) -> Iterator[tuple]:
    """Each picture and what `read` makes of it; those that can't be read into `bad`, InputError if they are many."""
    n = len(bad) + len(pictures)
    for picture in pictures:
        try:
            with warnings.catch_warnings(action="ignore"), picture.open() as image:
                value = read(image)
        except Exception as error:  # at a damaged file decoders raise whatever they run into
            bad[picture.name] = one_line(error)
        else:
            yield picture, value
    if 100 * len(bad) > n:
        names = listed([f"{name} ({reason})" for name, reason in sorted(bad.items())], 100)
        raise InputError(f"{path}: {len(bad)} of {n:,} can't be read as pictures, mend or remove them: {names}")


def header(image: Image.Image) -> tuple[tuple[int, int], bool, bool, bool, tuple]:
    """Size; whether it is grey, has an alpha channel, has colours of 16 bits; the extremes of grey of more than 8."""
    values = np.asarray(image, np.float64) if image.mode[0] in "IF" else np.array([])
    values = values[np.isfinite(values)]
    extremes = (float(values.min()), float(values.max())) if values.size else ()
    grey, deep = Image.getmodebase(image.mode) == "L", ";16" in str(getattr(image, "tile", ""))
    exif = Image.Image.getexif(image)  # a PNG's own would read all of it; Pillow turns the size of a TIFF itself
    on_its_side = image.format != "TIFF" and exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    size = image.size[::-1] if on_its_side else image.size
    return size, grey, image.has_transparency_data, deep and not extremes, extremes


def prepare(image: Image.Image, image_size: tuple[int, int], channels: int, grey_range: tuple[float, float]) -> Tensor:
    """Pixels (C, H, W) of a picture, upright, in this size (width, height), with 1 channel (grey) or 3 (RGB)."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey of more than 8 bits
        low, high = grey_range
        grey = np.nan_to_num((np.asarray(image, np.float64) - low) * 255 / (high - low))
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:  # on middle grey, where black and white can both be seen
        image = Image.alpha_composite(Image.new("RGBA", image.size, "#808080"), image.convert("RGBA"))
    image = image.convert("RGB").convert("L" if channels == 1 else "RGB").resize(image_size, reducing_gap=3.0)
    return torch.from_numpy(np.array(image)).view(image.height, image.width, channels).permute(2, 0, 1)
