"""Image sets: torchvision's, or the reader's own; each is one uint8 tensor in memory.

data = search_data("MNIST", Path("data"))     # what a search sees: data.train, data.held_out, data.num_classes
data = search_data("pictures", Path("data"))  # a folder of pictures, one folder for each class; or an .npz file
"""

import contextlib
import gzip
import hashlib
import math
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple

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
        train, held_out = hold_out(images)
    else:
        train, held_out, _, preparation = own_images(Path(name), image_size)
    return Data(first_images(train, train_images), held_out, len(preparation.classes), preparation)


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
        train, preparation = load_images(name, data_dir, train=True)
        test, _ = load_images(name, data_dir, train=False)
    else:
        train, val, test, preparation = own_images(Path(name), image_size)
        if settings and settings.get("images"):
            seen = Data(first_images(train, settings.get("train_images")), val, len(preparation.classes))
            if fingerprint(seen) != settings["images"]:
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


def load_images(name: str, data_dir: Path, train: bool) -> tuple[Images, Preparation]:
    """The training or the test set, unpacked or downloaded, and what it consists of; InputError without it."""
    folder, files = Path(data_dir), ["cifar-10-python.tar.gz"]
    if name != "CIFAR10":
        folder, files = folder / name / "raw", [f"{file}.gz" for file in MNIST_MD5]
        unpack(folder, checked=name == "MNIST")
    import torchvision  # here, because every worker process imports this file and none needs it

    new = [made for made in (folder, *folder.parents) if not made.exists()]
    try:
        dataset = getattr(torchvision.datasets, name)(data_dir, train=train, download=True)  # what is not there yet
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason, what = " ".join(dict.fromkeys((lines[0], lines[-1]))), ", ".join(files)
        for made in new:
            with contextlib.suppress(OSError):  # not empty
                made.rmdir()
        raise InputError(f"{name} can't be read or downloaded ({reason}): put {what} into {folder}/") from None
    pixels, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)  # (N, C, H, W)
    _, channels, height, width = pixels.shape
    return Images(pixels.contiguous(), labels), Preparation(tuple(dataset.classes), (width, height), channels)


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
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
PART_OF = {name: part for part, names in PARTS.items() for name in names}  # names as people write them
GREY = {"1", "L", "LA", "La"}  # Pillow's modes without colour, beside those of more than 8 bits
RUNS = "a run of this program"
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "lost+found"}  # what systems leave in folders, beside hidden files


class Picture(NamedTuple):
    name: str
    content: Path | np.ndarray  # a file, or uint8 (H, W) or (H, W, 3)
    label: int
    part: str


def own_images(path: Path, image_size: int | None) -> tuple[Images, Images, Images, Preparation]:
    """Training, validation and test images of a folder or an .npz file; says what it found and what it left out.

    Without a test part a fixed fifth of each class is the test set; without a validation part a fixed share of the
    rest (`held_out_share`) is held out. InputError for what is no image set.
    """
    pictures, classes = read_folder(path) if path.is_dir() else read_npz(path)
    check_classes(path, pictures, classes)
    pictures, pixels, preparation = decode(path, pictures, image_size)
    missing = check_classes(path, pictures, classes)
    labels = torch.tensor([picture.label for picture in pictures])
    parts = {}
    for part in PARTS.keys() - missing:
        chosen = torch.tensor([picture.part == part for picture in pictures])
        parts[part] = Images(pixels[chosen], labels[chosen])
        absent = [name for i, name in enumerate(classes) if i not in parts[part].labels]
        note(path, f"no picture for {part}, class left out there", absent)
    if "test" in missing:
        parts["train"], parts["test"] = split_off(parts["train"], 1 / 5)
    if "val" in missing:
        parts["train"], parts["val"] = split_off(parts["train"], held_out_share(len(parts["train"].labels)))
    order = torch.randperm(len(parts["train"].labels), generator=torch.Generator().manual_seed(0))
    parts["train"] = Images(*(tensor[order] for tensor in parts["train"]))  # the first ones are of all classes then
    train, val, test = (parts[part] for part in PARTS)
    shape = " x ".join(map(str, train.pixels.shape[1:]))
    n = "{:,} to train on, {:,} for validation, {:,} for the test".format(*(len(p.labels) for p in (train, val, test)))
    fifth = ", a fifth of each class, because there is no test part" if "test" in missing else ""
    names = ", ".join(classes[:10]) + ", ..." * (len(classes) > 10)
    print(f"{path}: {len(classes)} classes ({names}), images of {shape}, {n}{fifth}")
    return train, val, test, Preparation(tuple(map(printable, classes)), *preparation)


def check_classes(path: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> set[str]:
    """The parts that are missing; InputError if a class has too few pictures to learn it."""
    missing = PARTS.keys() - {picture.part for picture in pictures}
    counts = Counter(picture.label for picture in pictures if picture.part == "train")
    least = min(range(len(classes)), key=lambda label: counts[label])
    if len(classes) < 2:
        raise InputError(f"{path} has one class only, {classes[0]}: there is nothing to tell apart")
    if counts[least] <= len(missing):
        few = f"class {classes[least]} has {counts[least]} of the pictures to train on"
        raise InputError(f"{path}: {few}, training, validation and test need one each: add some, or remove the class")
    return missing


def note(path: Path, what: str, names: Sequence) -> None:
    """Print what holds for how many, and the names of the first, if there are any."""
    if names:
        print(f"{path}: {what} ({len(names):,}): {listed(names, 5)}")


def listed(names: Sequence, most: int) -> str:
    return ", ".join(map(str, names[:most])) + f", and {len(names) - most:,} more" * (len(names) > most)


def held_out_share(n: int) -> float:
    """The share of n images that gives the reward: with few images, more of them tell networks apart better."""
    return min(3 / 10, max(1000 / n, 1 / 10), HELD_OUT / n)


def split_off(images: Images, share: float) -> tuple[Images, Images]:
    """The rest, and a share of each class, at least one image: evenly spaced, always the same ones."""
    chosen = torch.zeros(len(images.labels), dtype=torch.bool)
    for label in images.labels.unique():
        index = (images.labels == label).nonzero()[:, 0]
        n = max(1, int(share * len(index)))
        chosen[index[torch.arange(n) * len(index) // n]] = True
    return choose(images, chosen)


def natural(name: str) -> tuple:
    """A key that sorts names as people do: 2 before 10."""
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(^-?\d+|\d+)", name))], name


def read_folder(root: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of a folder and the names of their classes; says what it left out.

    It holds a folder of pictures for each class (as torchvision's ImageFolder), or train/, val/ and test/ that do.
    """
    folders, left_out = walk(root)
    tops = [folder for folder in folders if folder.parent == root != folder]  # . is its own parent
    parents = {folder.parent for folder in folders}
    parts = {top: PART_OF[top.name.lower()] for top in tops if top.name.lower() in PART_OF and top in parents}
    if parts and (len({*parts.values()}) < len(parts) or "train" not in parts.values()):
        names = ", ".join(top.name for top in parts)
        raise InputError(f"{root} has the parts {names}: it needs one called train, and at most one val and one test")
    bases = parts or {root: "train"}
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    found: dict[Path, list[Path]] = {}  # the pictures of each class's folder
    for folder, files in folders.items():
        base = next((base for base in bases if folder.is_relative_to(base)), None)
        pictures = [file for file in files if file.suffix.lower() in suffixes]
        if base not in (None, folder):
            found.setdefault(base / folder.relative_to(base).parts[0], []).extend(pictures)
        elif folder in (base, root):
            left_out["in no folder of a class"] += pictures
        left_out["no picture"] += sorted({*files} - {*pictures}) if base else []
    ours = {run.parent for run in left_out[RUNS]}
    others = [top for top in tops if parts and top not in parts and top not in ours]
    left_out["no part with a folder for each class"] = others
    left_out["no picture in it"] = [folder for folder, files in found.items() if not files and folder not in ours]
    for what, names in left_out.items():
        note(root, f"left out, {what}", [os.path.relpath(name, root) for name in names])
    classes = sorted({folder.name for folder, files in found.items() if files}, key=natural)
    named = [name for name in classes if name.lower() in PART_OF and not parts]
    if len(classes) == len(named):
        loose = f", not pictures in {' and '.join(named)} themselves" if named else ""
        raise InputError(f"{root} needs a folder of pictures a class, or train/, val/ and test/ that have them{loose}")
    note(root, "called like a part, but without folders, so taken for a class", named)
    label = {name: i for i, name in enumerate(classes)}
    pictures = []
    for folder, files in sorted(found.items(), key=lambda item: label.get(item[0].name, 0)):
        row = label.get(folder.name), bases[folder.parent]
        pictures += [Picture(os.path.relpath(file, root), file, *row) for file in sorted(files)]
    return pictures, classes


def walk(root: Path) -> tuple[dict[Path, list[Path]], dict[str, list[Path]]]:
    """The files of each folder, and what is left out and why; every real folder once, those behind links last."""
    folders, left_out, seen, todo = {}, defaultdict(list), set(), [root]
    for top in todo:  # which grows
        for name, below, files in os.walk(top, onerror=lambda e: left_out["can't be listed"].append(e.filename)):
            folder, real = Path(name), os.path.realpath(name)
            ours = folder != root and any(re.fullmatch(r"children\.jsonl|best_child.*\.pt2", file) for file in files)
            if real in seen or ours:
                left_out[RUNS if ours else "read already, this is a link to it"].append(folder)
                below.clear()
                continue
            seen.add(real)
            hidden = {entry for entry in (*below, *files) if entry.startswith(".") or entry.lower() in SYSTEM}
            left_out["hidden"] += sorted(folder / entry for entry in hidden)
            below[:] = sorted({*below} - hidden)
            todo += [folder / entry for entry in below if (folder / entry).is_symlink()]
            folders[folder] = [folder / file for file in files if file not in hidden]
    return folders, left_out


def read_npz(file: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of a file in MedMNIST's layout, and the labels as names of the classes; says what it left out.

    `train_images` (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8 and `train_labels` (N,) or (N, 1), numbers or words;
    perhaps the same for `val` and `test`.
    """
    arrays, unused, name = {}, [], "it"
    try:
        with file.open("rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise ValueError("it is cut off, or another kind of file")
        with np.load(file, allow_pickle=False) as found:
            for name in found.files:
                part, _, kind = name.lower().rpartition("_")
                key = PART_OF.get(part), kind
                if part not in PART_OF or kind not in ("images", "labels") or key in arrays:
                    unused.append(name)
                else:
                    arrays[key] = name, found[name]
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "pickle" in reason:  # numpy would tell the reader to load it all the same
            reason = f"{name} holds Python objects, which may run code: save it as numbers or words, with .astype(str)"
        raise InputError(f"{file} is no .npz file that can be read: {reason}") from None
    note(file, "left out, not the images or labels of a part", unused)
    pictures, classes = [], []
    for part in PARTS:
        if part != "train" and not arrays.keys() & {(part, "images"), (part, "labels")}:
            continue
        if not arrays.keys() >= {(part, "images"), (part, "labels")}:
            raise InputError(f"{file} needs both {part}_images and {part}_labels")
        (name, images), (labels_name, labels) = arrays[part, "images"], arrays[part, "labels"]
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (1,), (3,)) or images.ndim < 3 or not images.size:
            raise InputError(
                f"{file}: {name} must be uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if labels.shape not in ((len(images),), (len(images), 1)) or labels.dtype.kind not in "iubUS":
            raise InputError(
                f"{file}: {labels_name} must be a whole number or a word for each of the {len(images)} images, "
                f"not {labels.dtype} of shape {labels.shape}"
            )
        labels = np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels.astype(str)
        labels = labels.reshape(-1).tolist()
        classes = classes or sorted({*labels}, key=natural)
        if unknown := sorted({*labels} - {*classes}, key=natural):
            raise InputError(f"{file}: {labels_name} has {unknown[0]}, which the training labels have not")
        images = images[..., 0] if images.shape[3:] == (1,) else images
        label = {name: i for i, name in enumerate(classes)}
        pictures += [Picture(f"{name}[{i}]", images[i], label[labels[i]], part) for i in range(len(images))]
    return pictures, classes


def decode(path: Path, pictures: list[Picture], image_size: int | None) -> tuple[list[Picture], Tensor, tuple]:
    """The pictures that can be read, their pixels (N, C, H, W) in one size, and the other arguments of `prepare`."""
    bad: dict[str, str] = {}
    pictures, headers = zip(*read_all(path, pictures, header, bad), strict=True)
    sizes, grey, alpha, coarse, deep = map(list, zip(*headers, strict=True))
    size = (image_size or IMAGE_SIZE,) * 2  # width, height
    if not image_size and len({*sizes}) == 1 and max(sizes[0]) <= LARGE:
        size = sizes[0]
    if {*sizes} != {size}:
        small, large = ("{} x {}".format(*extreme(sizes, key=math.prod)) for extreme in (min, max))
        print(f"{path}: pictures of {small} to {large} pixels are resized to {size[0]} x {size[1]} (--image_size)")
    names, channels, grey_range = [picture.name for picture in pictures], 1 if all(grey) else 3, (0, 65535)
    if any(deep):
        low, high = min(min(found) for found in deep if found), max(max(found) for found in deep if found)
        grey_range = low, high if high > low else low + 1
        note(path, f"more than 8 bits, grey of {low:g} to {high:g} becomes 0 to 255", [*compress(names, deep)])
    note(path, "with an alpha channel, what is transparent becomes grey", [*compress(names, alpha)])
    note(path, "with 16 bits a colour, of which the upper 8 are used", [*compress(names, coarse)])
    shape = len(pictures), channels, size[1], size[0]
    try:
        if 2 * math.prod(shape) > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise MemoryError  # here, because the system may promise more than it has; twice, because they are shuffled
        pixels = np.empty(shape, np.uint8)
    except MemoryError:
        need = f"{len(pictures):,} pictures of {size[0]} x {size[1]} need {math.prod(shape) / 1e9:,.3g} GB of memory"
        raise InputError(f"{path}: {need}, more than there is: choose a smaller --image_size") from None
    good, faint = [], []
    read = partial(prepare, image_size=size, channels=channels, grey_range=grey_range)
    for picture, array in read_all(path, tqdm(pictures, unit=" pictures", dynamic_ncols=True), read, bad):
        pixels[len(good)] = array
        good.append(picture)
        if np.ptp(array, (1, 2)).max() < 16:
            faint.append(picture.name)
    note(path, "left out, can't be read as a picture", sorted(bad))
    note(path, "nearly the same colour everywhere", faint)
    return good, torch.from_numpy(pixels[: len(good)]), (size, channels, grey_range)


def read_all(path: Path, pictures: Iterable[Picture], read: Callable, bad: dict[str, str]) -> Iterator[tuple]:
    """Each picture and what `read` makes of it; those that can't be read into `bad`, InputError if they are many."""
    n = len(bad)
    for picture in pictures:
        n += 1
        try:
            if isinstance(picture.content, np.ndarray):
                value = read(Image.fromarray(picture.content))
            else:
                with warnings.catch_warnings(action="ignore"), Image.open(picture.content, formats=FORMATS) as image:
                    value = read(image)
        except Exception as error:  # at a damaged file decoders raise whatever they run into
            bad[picture.name] = " ".join(str(error).split())
        else:
            yield picture, value
    if 100 * len(bad) > n:
        names = listed([f"{name} ({reason})" for name, reason in sorted(bad.items())], 100)
        raise InputError(f"{path}: {len(bad)} of {n:,} can't be read as pictures, mend or remove them: {names}")


def header(image: Image.Image) -> tuple[tuple[int, int], bool, bool, bool, tuple | None]:
    """Size; whether it is grey, has an alpha channel, has colours of 16 bits; the extremes of grey of more than 8."""
    extremes, deep = None, image.mode[0] in "IF"
    if deep:
        values = np.asarray(image, np.float64)
        values = values[np.isfinite(values)]
        extremes = (float(values.min()), float(values.max())) if values.size else None
    coarse = not deep and ";16" in str(getattr(image, "tile", ""))
    return image.size, deep or image.mode in GREY, image.has_transparency_data, coarse, extremes


def prepare(
    image: Image.Image, image_size: tuple[int, int], channels: int, grey_range: tuple[float, float]
) -> np.ndarray:
    """Pixels (C, H, W) of a picture, upright, in this size (width, height), with 1 channel (grey) or 3 (RGB)."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey of more than 8 bits
        low, high = grey_range
        grey = np.nan_to_num((np.asarray(image, np.float64) - low) * 255 / (high - low))
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:  # on middle grey, where black and white can both be seen
        image = Image.alpha_composite(Image.new("RGBA", image.size, "#808080"), image.convert("RGBA"))
    image = image.convert("RGB").convert("L" if channels == 1 else "RGB").resize(image_size, reducing_gap=3.0)
    return np.array(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
