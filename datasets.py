"""Image sets: torchvision's, or the reader's own; each is one uint8 tensor in memory.

data = search_data("MNIST", Path("data"))     # what a search sees: data.train, data.held_out, data.num_classes
data = search_data("pictures", Path("data"))  # a folder of pictures, one folder for each class; or an .npz file
"""

import gzip
import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from folders import PARTS, natural
from layouts import find_pictures
from pictures import Header, Picture, Preparation, choose_preparation, decode, note, read_headers, report_changes
from tables import is_standard
from utils import InputError, listed, one_line, printable, write_atomically

BUILT_IN = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10")
OWN_FILES = (".csv", ".npz")  # what the reader's own images may be, beside a folder
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_LAYOUT = f"it needs train/ and test/, each with a folder of pictures for {', '.join(CIFAR10_CLASSES)}"
SAME_IN_A_MIRROR = ("FashionMNIST", "CIFAR10")  # clothes, animals and cars; not digits or letters
HELD_OUT = 5000  # training images that give the reward (§4.1), the same ones in every run


class Images(NamedTuple):
    pixels: Tensor  # (N, C, H, W) uint8: the whole set is one tensor in memory
    labels: Tensor  # (N,) int64

    def take(self, index: Tensor | slice) -> "Images":
        return Images(self.pixels[index], self.labels[index])


class Data(NamedTuple):
    train: Images
    held_out: Images  # what a network is measured on: validation images in a search, test images in an evaluation
    num_classes: int
    preparation: Preparation | None = None


def search_data(name: str, data_dir: Path, train_images: int | None = None, image_size: int | None = None) -> Data:
    """What a search sees: training images only, some of them held out for the reward."""
    pictures = path_of_pictures(name, data_dir)
    if pictures is None:
        images, preparation = load_images(name, data_dir, train=True)
        train, held_out = map(images.take, split_off(images.labels, stratified=False))  # every twelfth of MNIST
    else:
        train, held_out, test, preparation = own_images(pictures, image_size, resize=name != "CIFAR10")
        check_cifar10(name, pictures, train, test, preparation)
    return Data(first_images(train, train_images), held_out, len(preparation.classes), preparation)


def evaluation_data(
    name: str,
    data_dir: Path,
    train_images: int | None = None,
    image_size: int | None = None,
    searched: dict | None = None,
) -> Data:
    """What `--mode evaluate` sees: all training images, and the test set.

    InputError if the search with the settings `searched` used other images.
    """
    pictures = path_of_pictures(name, data_dir)
    if pictures is None:
        train, preparation = load_images(name, data_dir, train=True)
        test, _ = load_images(name, data_dir, train=False)
    else:
        train, val, test, preparation = own_images(pictures, image_size, resize=name != "CIFAR10")
        check_cifar10(name, pictures, train, test, preparation)
        if searched and searched.get("images"):
            seen = Data(train.take(slice(searched.get("train_images"))), val, len(preparation.classes))
            if fingerprint(seen) != searched["images"]:
                raise InputError(f"{name} has other images than the search in this --run_dir had: choose another one")
        train = Images(*map(torch.cat, zip(train, val, strict=True)))
    return Data(first_images(train, train_images), test, len(preparation.classes), preparation)


def path_of_pictures(name: str, data_dir: Path) -> Path | None:
    """Where the pictures of a data set lie: the reader's own, or CIFAR-10's; None for what torchvision reads."""
    if name not in BUILT_IN:
        return Path(name)
    folder, archive = Path(data_dir) / "cifar10", (CIFAR10_ARCHIVE, "cifar-10-batches-py")
    if name != "CIFAR10" or not folder.is_dir() or any((Path(data_dir) / file).exists() for file in archive):
        return None
    if missing := [part for part in ("train", "test") if not (folder / part).is_dir()]:
        archive = f"torchvision's {CIFAR10_ARCHIVE} belongs into {data_dir}"
        raise InputError(f"{folder} has no folder {' and no '.join(missing)}: {CIFAR10_LAYOUT}; {archive}")
    return folder


def check_cifar10(name: str, folder: Path, train: Images, test: Images, preparation: Preparation) -> None:
    """InputError if a folder that stands for CIFAR-10 has other classes, or images of another kind."""
    if name != "CIFAR10":
        return
    width, height = preparation.image_size
    if preparation.classes != CIFAR10_CLASSES:
        raise InputError(f"{folder} has the classes {', '.join(preparation.classes)}: {CIFAR10_LAYOUT}")
    if (width, height, preparation.channels) != (32, 32, 3):
        kind = "RGB" if preparation.channels == 3 else "grey"
        raise InputError(
            f"{folder} has {kind} pictures of {width} x {height} pixels: those of CIFAR-10 are RGB, 32 x 32"
        )
    for part, images in (("train", train), ("test", test)):
        if missing := sorted(set(range(10)) - set(images.labels.tolist())):
            names = ", ".join(CIFAR10_CLASSES[label] for label in missing)
            raise InputError(f"{folder}/{part} has no picture of {names}: {CIFAR10_LAYOUT}")


def short_name(dataset: str) -> str:
    """What run folders and titles call a data set: the name of a built-in one, or of the folder or file."""
    if dataset in BUILT_IN:
        return dataset
    path = Path(dataset).resolve()
    if path.suffix.lower() in OWN_FILES and not path.is_dir():
        says_nothing = path.suffix.lower() == ".csv" and is_standard(path.stem)  # its folder's name says more
        path = path.parent if says_nothing else path.with_suffix("")
    return printable(path.name)


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


def split_off(labels: Tensor, share: float | None = None, stratified: bool = True) -> tuple[Tensor, Tensor]:
    """Indices of the rest, and of a share of each class, at least one: evenly spaced, always the same ones."""
    n = len(labels)
    share = share or held_out_share(n)
    groups = [(labels == label).nonzero()[:, 0] for label in labels.unique()] if stratified else [torch.arange(n)]
    chosen = torch.zeros(n, dtype=torch.bool)
    for group in groups:
        few = max(1, int(share * len(group)))
        evenly_spaced = torch.arange(few) * len(group) // few
        chosen[group[evenly_spaced]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def held_out_share(n: int) -> float:
    """The share of n training images that gives the reward.

    Few images can't tell networks apart, so of few a larger share is held out. The number held out never falls as n
    grows: 3/10 of n up to 1,000, then 1,000, then 1/10 of n up to HELD_OUT, then HELD_OUT.
    """
    if n < 3334:
        return 3 / 10
    if n < 10_000:
        return 1000 / n
    if n < 10 * HELD_OUT:
        return 1 / 10
    return HELD_OUT / n


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

# The digests are those of MNIST's unpacked files, since a .gz may be compressed in many ways. Other data sets have
# other files of the same names.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load_images(name: str, data_dir: Path, train: bool) -> tuple[Images, Preparation]:
    """The training or the test set, unpacked or downloaded, and what it consists of; InputError without it."""
    folder, files = Path(data_dir), CIFAR10_ARCHIVE
    pictures = f", or its pictures into {folder}/cifar10/{{train,test}}/<class>/" if name == "CIFAR10" else ""
    if name != "CIFAR10":
        folder, files = folder / name / "raw", ", ".join(f"{file}.gz" for file in MNIST_MD5)
        unpack(folder, checked=name == "MNIST")
    import torchvision  # here, because every worker process imports this file and none needs it

    new = [made for made in (folder, *folder.parents) if not made.exists()]
    try:
        dataset = getattr(torchvision.datasets, name)(data_dir, train=train, download=True)  # only what is missing
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        for made in new:
            if made.exists() and not any(made.iterdir()):
                made.rmdir()
        reason = one_line(error)
        if name == "CIFAR10" and (folder / "cifar10").is_dir():
            remedy = f"remove {files} and cifar-10-batches-py from {folder}/ to use the pictures in {folder}/cifar10/"
            raise InputError(f"CIFAR10's archive can't be read or completed ({reason}): {remedy}") from None
        raise InputError(
            f"{name} can't be read or downloaded ({reason}): put {files} into {folder}/{pictures}"
        ) from None
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


# --- the reader's own ---------------------------------------------------------------------------------------------


def own_images(path: Path, image_size: int | None, resize: bool = True) -> tuple[Images, Images, Images, Preparation]:
    """Training, validation and test images of a folder or an .npz file; says what it found and what it left out.

    InputError for pictures of several sizes unless they may be resized.
    """
    pictures = find_pictures(path)
    classes = sorted({picture.label for picture in pictures}, key=natural)
    check_enough(path, pictures, classes)  # an error comes now, before all are decoded, which takes long

    bad: dict[str, str] = {}  # names of those that can't be read, and why
    pictures, headers = read_headers(path, pictures, bad)
    if not resize:
        check_size(path, pictures, headers)
    preparation = choose_preparation(classes, headers, image_size)
    report_changes(path, pictures, headers, preparation)
    pictures, pixels = decode(path, pictures, preparation, bad)

    check_distinct(path, pictures, digests(pixels))
    if missing_parts(pictures):  # then some parts are drawn
        pictures, pixels = without_copies(path, pictures, pixels)
    check_enough(path, pictures, classes)  # again, without those that are left out
    missing = missing_parts(pictures)
    report_missing_classes(path, pictures, classes)
    number = {name: i for i, name in enumerate(classes)}
    images = Images(pixels, torch.tensor([number[picture.label] for picture in pictures]))
    indices = split(images.labels, [picture.part for picture in pictures], missing)
    train, val, test = map(images.take, indices)
    report_repeated(path, "validation", val, train)
    report_repeated(path, "test", test, train, val)
    fifth = ", a fifth of each class, because there is no test part" if "test" in missing else ""
    n = "{:,} to train on, {:,} for validation, {:,} for the test".format(*map(len, indices))
    width, height = preparation.image_size
    kind = f"{width} x {height} {'grey' if preparation.channels == 1 else 'RGB'} pixels"
    print(printable(f"{path}: {len(classes)} classes ({listed(classes, 10)}), images of {kind}, {n}{fifth}"))
    return train, val, test, preparation


def check_size(path: Path, pictures: Sequence[Picture], headers: Sequence[Header]) -> None:
    """InputError if pictures differ in size."""
    usual, _ = Counter(header.size for header in headers).most_common(1)[0]
    for picture, header in zip(pictures, headers, strict=True):
        if header.size != usual:
            sizes = "{} x {} pixels, most pictures have {} x {}".format(*header.size, *usual)
            raise InputError(f"{path}: {picture.name} has {sizes}: replace it")


def missing_parts(pictures: Sequence[Picture]) -> set[str]:
    """The parts without pictures."""
    return PARTS.keys() - {picture.part for picture in pictures}


def check_enough(path: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> None:
    """InputError if a class has too few pictures to learn it."""
    counts = Counter(picture.label for picture in pictures if picture.part == "train")
    least = min(classes, key=lambda name: counts[name])
    if len(classes) < 2:
        raise InputError(f"{path} has one class only, {least}: there is nothing to tell apart")
    if counts[least] <= len(missing_parts(pictures)):
        few = f"class {least} has {counts[least]} of the pictures to train on"
        if not counts[least]:
            parts = sorted({picture.part for picture in pictures if picture.label == least})
            few += f" (it is in {' and '.join(parts)} only)"
        raise InputError(f"{path}: {few}, training, validation and test need one each: add some, or remove the class")


def report_missing_classes(path: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> None:
    """Print which classes a part lacks that others have."""
    for part in sorted({picture.part for picture in pictures}):
        labels = {picture.label for picture in pictures if picture.part == part}
        note(path, f"no picture for {part}, class left out there", [name for name in classes if name not in labels])


def digests(pixels: Tensor) -> list[int]:
    """A number for each image (N, C, H, W): those of equal images are equal."""
    return [hash(image.tobytes()) for image in pixels.numpy()]


def count_repeated(held_out: Images, *others: Images) -> int:
    """How many of the images that a network is measured on are among others, too."""
    known = {digest for images in others for digest in digests(images.pixels)}
    return sum(digest in known for digest in digests(held_out.pixels))


def report_repeated(path: Path, part: str, images: Images, *others: Images) -> None:
    """Print how many images of a part the network is trained on."""
    if repeated := count_repeated(images, *others):
        n = len(images.labels)
        so = "says nothing" if repeated == n else "is too high"
        copies = f"{repeated:,} of {n:,} {part} pictures are in the training part too"
        print(printable(f"{path}: {copies}: the {part} accuracy {so}"))


def check_distinct(path: Path, pictures: Sequence[Picture], digests: Sequence[int]) -> None:
    """Print which equal pictures have different labels; InputError if a class or most of the set is one picture."""
    first: dict[int, Picture] = {}
    contradictions = []
    copies, of_class = Counter(digests), defaultdict(list)
    for picture, digest in zip(pictures, digests, strict=True):
        of_class[picture.label].append(digest)
        twin = first.setdefault(digest, picture)
        if twin.label != picture.label:
            contradictions.append(f"{twin.name} = {picture.name}")
    note(path, "equal pictures with different labels", contradictions)
    digest, n = copies.most_common(1)[0]
    for label, found in of_class.items():
        if len(found) > 2 and len({*found}) == 1:
            raise InputError(f"{path}: all {len(found):,} pictures of class {label} are the same: replace them")
    if n > 2 and 2 * n > len(pictures):
        same = f"{n:,} of {len(pictures):,} pictures are the same as {first[digest].name}"
        raise InputError(f"{path}: {same}: replace or remove them")


def without_copies(path: Path, pictures: Sequence[Picture], pixels: Tensor) -> tuple[list[Picture], Tensor]:
    """Without what repeats a picture of its class, so that parts that are drawn share none."""
    seen, kept, copies = set(), [], []
    for i, (picture, digest) in enumerate(zip(pictures, digests(pixels), strict=True)):
        repeated = picture.part == "train" and (picture.label, digest) in seen
        (copies if repeated else kept).append(i)
        if picture.part == "train":
            seen.add((picture.label, digest))
    if not copies:
        return [*pictures], pixels
    note(path, "left out, the same picture again in its class", [pictures[i].name for i in copies])
    return [pictures[i] for i in kept], pixels[kept]


def split(labels: Tensor, parts: Sequence[str], missing: Collection[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the images of each part; what is missing comes from the training part, the test first."""
    part_of = np.array(parts)
    train, val, test = (torch.from_numpy((part_of == part).nonzero()[0]) for part in ("train", "val", "test"))
    if "test" in missing:
        train, test = (train[index] for index in split_off(labels[train], 1 / 5))
    if "val" in missing:
        train, val = (train[index] for index in split_off(labels[train]))
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # the first: of all classes
    return train[shuffled], val, test
