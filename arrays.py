"""The reader's own images in an .npz file: for each part an array of pixels and one of labels."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from folders import EITHER, PART_OF
from pictures import Picture, note
from utils import InputError, listed, one_line

KINDS = {"images": "images", "x": "images", "labels": "labels", "y": "labels"}  # the words of MedMNIST and Keras
SHAPES = "(N, H, W), (N, H, W, 1), (N, H, W, 3), (N, 1, H, W) or (N, 3, H, W)"


class Array(NamedTuple):
    name: str
    values: np.ndarray


def read_npz(file: Path) -> list[Picture]:
    """The pictures of a file that has `train_images` and `train_labels`, or Keras' names; perhaps val and test too."""
    arrays = load_arrays(file)
    parts = [*dict.fromkeys(("train", *(part for part, _ in arrays)))]
    for part in parts:
        if not arrays.keys() >= {(part, "images"), (part, "labels")}:
            names = f"{part}_images and {part}_labels (or x_{part} and y_{part})"
            there = listed([array.name for array in arrays.values()], 5) or "none of them"
            raise InputError(f"{file} needs both {names}: it has {there}")
    images = [arrays[part, "images"] for part in parts]
    pixels = to_uint8(file, channels_last(file, images))
    pictures = []
    for part, found in zip(parts, pixels, strict=True):
        labels = read_labels(file, arrays[part, "labels"], len(found.values))
        for i, label in enumerate(labels):
            image = partial(Image.fromarray, found.values[i])
            pictures.append(Picture(f"{found.name}[{i}]", image, label, part))
    return pictures


def load_arrays(file: Path) -> dict[tuple[str, str], Array]:
    """The arrays of a file by their part and by whether they are images or labels; the others are named."""
    arrays, unused, name = {}, [], "it"
    try:
        with np.load(file, allow_pickle=False) as found:
            for name in found.files:
                key = part_and_kind(name)
                if key is None or key in arrays:
                    unused.append(name)
                else:
                    arrays[key] = Array(name, np.asarray(found[name]))
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = one_line(error) if zipfile.is_zipfile(file) else "it is cut off, or another kind of file"
        if "pickle" in reason:  # numpy would tell the reader to load it all the same
            reason = f"{name} holds Python objects, which may run code: save it as numbers or words, with .astype(str)"
        raise InputError(f"{file} is no .npz file that can be read: {reason}") from None
    note(file, "left out, not the images or labels of a part", unused)
    return arrays


def part_and_kind(name: str) -> tuple[str, str] | None:
    """What an array is by its name: train_images, images_train, x_train."""
    words = name.lower().split("_")
    if len(words) == 1 and words[0] in KINDS:  # an array without a part is for training
        return "train", KINDS[words[0]]
    for part, kind in (words, words[::-1]) if len(words) == 2 else ():
        if PART_OF.get(part, EITHER) != EITHER and kind in KINDS:
            return PART_OF[part], KINDS[kind]
    return None


# --- pixels -------------------------------------------------------------------------------------------------------


def channels_last(file: Path, arrays: Sequence[Array]) -> list[Array]:
    """Images of shape (N, H, W) or (N, H, W, 3); those of (N, C, H, W) are turned. InputError for other shapes."""
    found, turned = [], []
    for name, images in arrays:
        if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
            images = np.moveaxis(images, 1, -1)
            turned.append(name)
        if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or not images.size:
            is_now = f"{images.dtype} of shape {images.shape}"
            raise InputError(f"{file}: {name} must be of shape {SHAPES}, not {is_now}{shape_hint(images.shape)}")
        found.append(Array(name, images[..., 0] if images.shape[3:] == (1,) else images))
    note(file, "turned from (N, C, H, W) to (N, H, W, C)", turned)
    return found


def shape_hint(shape: tuple[int, ...]) -> str:
    """How images of a shape may be turned into one that is read, if that is usual."""
    if shape[3:] == (4,):
        return ": leave out the fourth channel with [..., :3]"
    if len(shape) == 2:
        grey, color = math.isqrt(shape[1]), math.isqrt(shape[1] // 3)
        if grey**2 == shape[1]:
            return f": perhaps .reshape(-1, {grey}, {grey})"
        if 3 * color**2 == shape[1]:
            return f": perhaps .reshape(-1, 3, {color}, {color}) or .reshape(-1, {color}, {color}, 3)"
    return ""


def to_uint8(file: Path, arrays: Sequence[Array]) -> list[Array]:
    """Images as uint8; other numbers have one scale in all parts: from 0 to 1, or whole numbers from 0 to 255."""
    others = [array for array in arrays if array.values.dtype != np.uint8]
    if not others:
        return [*arrays]
    names = " and ".join(array.name for array in others)
    kinds = " and ".join(sorted({str(array.values.dtype) for array in others}))
    if any(array.values.dtype.kind not in "fiub" for array in others):
        raise InputError(f"{file}: {names} must be numbers, uint8 at best, not {kinds}")
    low = float(min(array.values.min() for array in others))
    high = float(max(array.values.max() for array in others))  # NaN, if there is one
    if low >= 0 and high <= 1:
        scale = 255
    elif low >= 0 and high <= 255 and all(map(are_whole, others)):
        scale = 1
    else:
        hint = "; (x + 1) * 127.5 does it for -1 to 1" if -1 <= low < 0 and high <= 1 else ""
        wanted = "uint8, or numbers from 0 to 1, or whole numbers from 0 to 255"
        values = f"{kinds} from {low:g} to {high:g}"
        raise InputError(f"{file}: {names} must be {wanted}, not {values}: bring them to 0 to 255{hint}")
    before = "numbers from 0 to 1, times 255" if scale == 255 else "whole numbers from 0 to 255"
    note(file, f"{kinds}, taken for {before}", [array.name for array in others])
    found = []
    for name, images in arrays:
        if images.dtype != np.uint8:
            pixels = np.empty(images.shape, np.uint8)
            for i, image in enumerate(images):  # one at a time, because all at once need much memory
                pixels[i] = np.rint(image * float(scale))
            images = pixels
        found.append(Array(name, images))
    return found


def are_whole(array: Array) -> bool:
    return all(np.array_equal(image, np.rint(image)) for image in array.values)


# --- labels -------------------------------------------------------------------------------------------------------


def read_labels(file: Path, array: Array, n: int) -> list[str]:
    """The label of each of n images, as words; InputError if there isn't one for each."""
    name, labels = array
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == n and labels.dtype.kind in "fiub":
        labels = from_one_hot(file, name, labels)
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(int)
    if labels.shape != (n,) or labels.dtype.kind not in "iubUS":
        wanted = f"a whole number or a word for each of the {n} images"
        raise InputError(f"{file}: {name} must be {wanted}, not {labels.dtype} of shape {labels.shape}")
    return (np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels.astype(str)).tolist()


def from_one_hot(file: Path, name: str, labels: np.ndarray) -> np.ndarray:
    """The number of the only 1 in each row; InputError if there isn't one."""
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"{file}: {name} must be one label for each image: for scores perhaps {name}.argmax(1)")
    wrong = int((labels.sum(1) != 1).sum())
    if wrong:
        several = f"{wrong:,} of {len(labels):,} rows of {name} have no 1 or several"
        raise InputError(f"{file}: {several}; several labels for an image are not supported")
    note(file, f"one label in {labels.shape[1]} columns (one-hot), read as its number", [name])
    return labels.argmax(1)
