"""Where the reader's own pictures are, and of which class and part: folders of classes, or an .npz file."""

import os
import re
import zipfile
import zlib
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from formats import open_picture, pictures_among
from pictures import Picture, note
from utils import InputError, one_line

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
PART_OF = {name: part for part, names in PARTS.items() for name in names}  # names as people write them
RUNS = "a run of this program"
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "lost+found"}  # what systems leave in folders, beside hidden files


def find_pictures(path: Path) -> list[Picture]:
    """The pictures of a folder or an .npz file, none of them opened yet."""
    return read_folder(path) if path.is_dir() else read_npz(path)


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
            pictures.append(
                Picture(str(file), partial(open_picture, root / file), place[-1], parts.get(place[0], "train"))
            )
    classes = {picture.label for picture in pictures}
    named = sorted(name for name in classes if name.lower() in PART_OF and not parts)
    if len(classes) == len(named):
        loose = f", not pictures in {' and '.join(named)} themselves" if named else ""
        raise InputError(f"{root} needs a folder of pictures a class, or train/, val/ and test/ that have them{loose}")
    note(root, "called like a part, but without folders, so taken for a class", named)
    return pictures


def walk(root: Path) -> tuple[dict[Path, list[Path]], dict[str, list[Path]]]:
    """The pictures of each folder, and what is left out and why; every real folder once, those behind links last."""
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
            folders[folder] = pictures_among(paths)
            left_out["no picture"] += sorted({*paths} - {*folders[folder]})
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
