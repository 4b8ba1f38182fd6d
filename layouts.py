"""Where the reader's own pictures are, and of which class and part: folders of classes, a table, or an .npz file."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote

from arrays import read_npz
from folders import Tree, exact_part, find_classes, make_tree, natural, refuse_single_class, same_form, similar
from formats import open_picture, pictures_among
from pictures import Picture, note
from tables import Labelled, NotLabels, find_tables, read_tables
from utils import InputError, listed, printable

HINTS = {  # what to do with files that may hold the pictures or their labels, if no layout is found
    (".csv", ".npz"): "for {file}: --dataset {path}",
    (".tsv", ".xlsx", ".xls", ".ods", ".json", ".jsonl", ".parquet", ".mat"): "labels of {file} are read as CSV only",
    (".npy",): "several arrays such as {file} are read from one .npz file (np.savez)",
    (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"): "unpack {file}",
}
RUNS = "a run of this program"
SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "lost+found"}  # what systems leave in folders, beside hidden files


def find_pictures(path: Path) -> list[Picture]:
    """The pictures of a folder, a table or an .npz file, none of them opened yet."""
    if path.is_dir():
        pictures = read_folder(path)
    elif path.suffix.lower() == ".csv":
        pictures = read_labelled(path)
    else:
        pictures = read_npz(path)
    return with_labels_of_training(path, pictures)


def read_labelled(file: Path) -> list[Picture]:
    """The pictures that a table gives labels to, from the folder that it is in."""
    root, table = file.parent, Path(file.name)
    folders, left_out = walk(root)
    files = [picture for pictures in folders.values() for picture in pictures]
    part = "train" if exact_part(file.stem) == "train" else None
    labelled = read_tables(root, {table: part}, files)
    left_out["no picture"] = [path for path in left_out["no picture"] if path != table]
    report_left_out(root, left_out)
    return in_order(root, labelled)


def read_folder(root: Path) -> list[Picture]:
    """The pictures of a folder: labelled by a table that is in it, or by the folders that they are in."""
    folders, left_out = walk(root)
    files = [picture for pictures in folders.values() for picture in pictures]
    found: dict[Path, list[Labelled]] = {}
    unused: list[NotLabels] = []
    for tables in find_tables(left_out["no picture"]):
        first = next(iter(tables))
        try:
            found[first] = read_tables(root, tables, files)
        except NotLabels as error:
            unused.append(error)
        else:
            left_out["no picture"] = [path for path in left_out["no picture"] if path not in tables]
    if len(found) > 1:
        point = f"name one, as --dataset {quote(str(root / next(iter(found))))}"
        raise InputError(f"{root} has {len(found)} tables that give labels, {listed([*found], 3)}: {point}")
    if found:
        report_left_out(root, left_out)
        (labelled,) = found.values()
        pictures = in_order(root, labelled)
    else:
        try:
            pictures = read_class_folders(root, make_tree(folders), left_out)
        except InputError as error:
            more = unused or hints(root, left_out["no picture"])
            raise InputError("; ".join(map(str, [error, *more]))) from None
    for error in unused:
        print(printable(f"{error}; it is not used"))
    return pictures


def hints(root: Path, others: Sequence[Path]) -> list[str]:
    """What to do with the first file of each kind that may hold the pictures or their labels."""
    found = []
    for suffixes, hint in HINTS.items():
        files = [file for file in others if file.suffix.lower() in suffixes]
        found += [hint.format(file=file, path=quote(str(root / file))) for file in files[:1]]
    return found


def read_class_folders(root: Path, tree: Tree, left_out: dict[str, list[Path]]) -> list[Picture]:
    """The pictures of a folder that has one for each class (as torchvision's ImageFolder), or parts that do."""
    try:
        classes = find_classes(root, tree)
    except InputError:
        report_left_out(root, left_out)
        raise
    class_of = {place.folder: place for place in classes}
    tops = {place.folder.parts[0] for place in classes}
    labelled, nested = [], []
    for folder, files in tree.pictures.items():
        place = next((class_of[above] for above in (folder, *folder.parents) if above in class_of), None)
        if place:
            labelled += [Labelled(file, place.label, place.part) for file in files]
            if files and folder != place.folder:
                nested.append(folder)
        elif folder.parts and folder.parts[0] not in tops:
            left_out["no part with a folder for each class"].append(Path(folder.parts[0]))
        else:
            left_out["in no folder of a class"] += files
    left_out["no picture in it"] = [place.folder for place in classes if not tree.total[place.folder]]
    report_left_out(root, left_out)
    note(root, "below the folder of a class, so counted as that class", nested)
    refuse_single_class(root, tree, classes)
    return in_order(root, labelled)


def report_left_out(root: Path, left_out: dict[str, list[Path]]) -> None:
    """Print what is left out and why, once each, but not the folders that this program's runs are in."""
    ours = {run.parent for run in left_out[RUNS]}
    for what, paths in left_out.items():
        note(root, f"left out, {what}", [path for path in dict.fromkeys(paths) if path not in ours])


def in_order(root: Path, labelled: Sequence[Labelled]) -> list[Picture]:
    """The pictures by class, and by the names of their files in each."""
    labels = sorted({picture.label for picture in labelled}, key=natural)
    order = {label: i for i, label in enumerate(labels)}
    pictures = []
    for file, label, part in sorted(labelled, key=lambda picture: (order[picture.label], picture.file)):
        pictures.append(Picture(str(file), partial(open_picture, root / file), label, part))
    return pictures


def with_labels_of_training(path: Path, pictures: list[Picture]) -> list[Picture]:
    """The same pictures, where a class has one name: that of the training part, if other parts write it differently."""
    train = sorted({picture.label for picture in pictures if picture.part == "train"})
    by_look, by_word = group_by(train, same_form), group_by(train, similar)
    for twins in by_look.values():
        if len(twins) > 1:
            names = " and ".join(ascii(name) for name in twins)
            differ = "differ only in spaces or in how accents are written"
            raise InputError(f"{path}: the classes {names} {differ}: give them one name, or make them different")
    alike = [" and ".join(names) for names in by_word.values() if len(names) > 1]
    note(path, "different classes, though their names differ in case only", alike)
    name_of = {}
    for label in sorted({picture.label for picture in pictures} - {*train}):
        names = by_word.get(similar(label), [])
        if len(names) == 1:
            name_of[label] = names[0]
    differently = [f"{label!a} is {name!a}" for label, name in name_of.items()]
    note(path, "names in other parts that differ in case, spaces or accents only, so the same class", differently)
    if not name_of:
        return pictures
    return [picture._replace(label=name_of.get(picture.label, picture.label)) for picture in pictures]


def group_by(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Names by what `key` makes of them."""
    groups = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups


def walk(root: Path) -> tuple[dict[Path, list[Path]], dict[str, list[Path]]]:
    """The pictures of each folder, and what is left out and why; every real folder once, those behind links last."""
    folders, left_out, seen, todo, denied = {}, defaultdict(list), set(), [root], []
    for top in todo:  # a list that grows
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
