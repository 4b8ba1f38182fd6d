"""Which folders are classes, and which are parts (training, validation, test): by their names and by what is in them.

What can't be decided is an InputError that names the choices.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from pictures import note
from utils import InputError, listed, printable

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
PART_OF = {name: part for part, names in PARTS.items() for name in names}  # names as people write them
EITHER = "test or val"  # what people call eval
PART_OF |= dict.fromkeys(("eval", "evaluation"), EITHER)
PICTURES = {"images", "image", "imgs", "img", "jpegimages"}
BESIDE_PICTURES = {"labels", "masks", "mask", "annotations", "segmentations", "segmentation", "ground_truth", "gt"}
TABLE = "a table, labels.csv, with the columns file_name and label"


class Tree(NamedTuple):
    """All folders, by their path below the one that was given."""

    pictures: dict[Path, list[Path]]  # the files in each folder itself
    folders: dict[Path, list[Path]]  # the folders in each folder itself
    total: Counter[Path]  # pictures in each folder and below it

    def filled(self, folder: Path) -> list[Path]:
        """The folders in a folder that have pictures in them or below."""
        return [below for below in self.folders[folder] if self.total[below]]


class ClassFolder(NamedTuple):
    folder: Path  # all pictures below it are of the class
    label: str  # the name of its class
    part: str


def make_tree(pictures: dict[Path, list[Path]]) -> Tree:
    """A tree from the pictures of each folder, the root and empty folders among them."""
    folders: dict[Path, list[Path]] = {folder: [] for folder in pictures}
    total: Counter[Path] = Counter()
    for folder, files in pictures.items():
        if folder.parts:
            folders[folder.parent].append(folder)
        for place in (folder, *folder.parents):
            total[place] += len(files)
    return Tree(pictures, folders, total)


def natural(name: str) -> tuple:
    """A key that sorts names as people do: 2 before 10."""
    pieces = re.split(r"(^-?\d+|\d+)", name)  # the numbers are at odd places
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def same_form(name: str) -> str:
    """A name without what can't be seen: spaces around it, and composed or decomposed accents."""
    return unicodedata.normalize("NFC", name).strip()


def similar(name: str) -> str:
    """A key that is the same for names which differ in case, in spaces around them or in the form of accents."""
    return same_form(same_form(name).casefold())


def exact_part(name: str) -> str | None:
    """The part that a name is the name of, in any case."""
    return PART_OF.get(same_form(name).lower())


def part_in(name: str) -> str | None:
    """The only part whose name is a word of this name: training_set, seg_train, val1, TestData."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    words = [re.sub(r"(set|data|images|labels)$", "", word.lower()) for word in words]
    parts = {PART_OF[word] for word in words if word in PART_OF}
    return parts.pop() if len(parts) == 1 else None


# --- layouts ------------------------------------------------------------------------------------------------------


def find_classes(root: Path, tree: Tree) -> list[ClassFolder]:
    """The folder of each class, in each part; those without pictures too. InputError if there is no telling."""
    refuse_other_tasks(root, tree)
    parts = find_parts(root, tree)
    if parts:
        found = [
            ClassFolder(folder, folder.name, part) for base, part in parts.items() for folder in tree.folders[base]
        ]
    elif classes_first(tree):
        inside = [(top, folder) for top in tree.filled(Path()) for folder in tree.filled(top)]
        part_of = decide_either({folder: part_in(folder.name) for _, folder in inside})
        found = [ClassFolder(folder, top.name, part_of[folder]) for top, folder in inside]
        note(root, "parts inside the folders of the classes", [f"{folder} ({part_of[folder]})" for _, folder in inside])
    else:
        found = [ClassFolder(top, top.name, "train") for top in tree.folders[Path()]]
        refuse_one_level_too_deep(root, tree)
        refuse_loose_pictures(root, tree)
    refuse_groups(root, tree, found)
    return found


def find_parts(root: Path, tree: Tree) -> dict[Path, str]:
    """The folders that hold the classes of a part each; empty if there are none.

    A folder that is called exactly like a part is one if it has folders. One whose name only contains a part's is one
    if it shares a class with another.
    """
    named = {top: part_in(top.name) for top in tree.folders[Path()] if tree.folders[top] and part_in(top.name)}
    bases = {top: unwrapped(tree, top, part) for top, part in named.items()}
    classes = {top: {similar(folder.name) for folder in tree.filled(base)} for top, base in bases.items()}
    parts = {}
    for top in named:
        shared = any(classes[top] & classes[other] for other in named if other != top)
        if exact_part(top.name) or shared:
            parts[top] = named[top]
    parts = decide_either(parts)
    values = list(parts.values())
    if parts and ("train" not in values or len(values) > len({*values})):
        names = ", ".join(printable(top.name) for top in parts)
        need = "it needs one called train, and at most one val and one test"
        raise InputError(f"{root} has the parts {names}: {need}; rename the others, or move them elsewhere")
    differently = [top for top in parts if PART_OF.get(top.name.lower()) != parts[top] or bases[top] != top]
    note(root, "taken for a part", [f"{bases[top]} ({parts[top]})" for top in differently])
    return {bases[top]: part for top, part in parts.items()}


def unwrapped(tree: Tree, top: Path, part: str) -> Path:
    """A part's folder, or the one of the same part that is all it holds: train/train, seg_train/seg_train."""
    base = top
    while len(filled := tree.filled(base)) == 1 and not tree.pictures[base]:
        (inside,) = filled
        if part_in(inside.name) != part or not tree.folders[inside]:
            break
        base = inside
    return base


def decide_either(parts: dict[Path, str]) -> dict[Path, str]:
    """What is called eval is the validation part beside a test part, and otherwise the test part."""
    called_eval = "val" if "test" in parts.values() else "test"
    return {folder: called_eval if part == EITHER else part for folder, part in parts.items()}


def classes_first(tree: Tree) -> bool:
    """Whether all classes, hardly holding a picture themselves, hold folders of parts, with the pictures in them."""
    tops = tree.filled(Path())
    several = False
    for top in tops:
        inside = tree.filled(top)
        parts = [part_in(folder.name) for folder in inside]
        if "train" not in parts or None in parts or len(parts) > len({*parts}) or own_pictures(tree, top):
            return False
        if not all(own_pictures(tree, folder) for folder in inside):
            return False
        several |= len(parts) > 1
    return several and len(tops) > 1


def own_pictures(tree: Tree, folder: Path) -> bool:
    """Whether a folder's own pictures are more than a few covers beside those of the folders in it."""
    return 4 * len(tree.pictures[folder]) >= tree.total[folder]


# --- what is no layout of classes ---------------------------------------------------------------------------------


def refuse_one_level_too_deep(root: Path, tree: Tree) -> None:
    """InputError if the folders of the classes are all in one folder: it is the one to point to."""
    deep = Path()
    while len(filled := tree.filled(deep)) == 1 and (deep == Path() or not own_pictures(tree, deep)):
        (deep,) = filled
    if deep.parts and len(filled) > 1 and not own_pictures(tree, deep):
        inner = root / deep
        there = f"{inner} has {len(filled)} folders with pictures: --dataset {quote(str(inner))}"
        raise InputError(f"{root} has one folder with pictures, which is no class; {there}")


def refuse_loose_pictures(root: Path, tree: Tree) -> None:
    """InputError if there is no folder of a class, or if the parts hold pictures themselves."""
    tops = tree.filled(Path())
    called_like_parts = [top for top in tops if exact_part(top.name)]
    parts = {part_in(top.name) for top in tops}
    if None not in parts and len(parts) > 1:
        called_like_parts = tops
    if len(called_like_parts) < len(tops):
        note(root, "called like a part, but without folders, so taken for a class", sorted(called_like_parts))
        return
    loose = f", not pictures in {' and '.join(sorted(top.name for top in tops))} themselves" if tops else ""
    files = [file for top in (Path(), *tops) for file in tree.pictures[top]]
    need = "needs a folder of pictures a class, or train/, val/ and test/ that have them"
    raise InputError(f"{root} {need}, or {TABLE}{loose}{by_beginnings(files)}")


def refuse_single_class(root: Path, tree: Tree, found: Sequence[ClassFolder]) -> None:
    """InputError if all pictures are in one class."""
    labels = {place.label for place in found if tree.total[place.folder]}
    if len(labels) == 1:
        files = [file for place in found for file in tree.pictures[place.folder]]
        nothing = f"has one class only, {labels.pop()}: there is nothing to tell apart"
        raise InputError(f"{root} {nothing}; each class needs a folder, or {TABLE}{by_beginnings(files)}")


def by_beginnings(files: Sequence[Path]) -> str:
    """What to do if the names of pictures say their classes; empty if they don't."""
    if not (begin := beginnings(files)):
        return ""
    names = listed(begin, 5)
    return f"; names of pictures begin with {names}: if these are the classes, sort them into folders {names}"


def beginnings(files: Sequence[Path]) -> list[str]:
    """The words before the numbers in names such as cat.0.png and dog.1.png, if they look like classes."""
    words = [re.fullmatch(r"(.*?[^\W\d_])[\W_]*\d+\W*", file.stem) for file in files]
    counts = Counter(word[1] for word in words if word)
    most = 2 * sum(counts.values()) > len(files)
    return sorted(counts) if most and 1 < len(counts) <= len(files) / 2 else []


def refuse_other_tasks(root: Path, tree: Tree) -> None:
    """InputError if this is what detection and segmentation use: pictures in one folder, what they show in another."""
    for folder in tree.folders:
        names = {below.name.lower(): below for below in tree.folders[folder]}
        images = [below for name, below in names.items() if name in PICTURES and tree.total[below]]
        images = [below for below in images if not has_classes(tree, below)]
        labels = [names[name] for name in names if name in BESIDE_PICTURES]
        if images and labels:
            what = f"{images[0]} beside {labels[0]} is a layout for detection or segmentation (YOLO, Roboflow, VOC)"
            need = f"a folder for each class with nothing but its pictures, or {TABLE}"
            raise InputError(f"{root}: {what}; classification needs {need}")


def has_classes(tree: Tree, folder: Path) -> bool:
    """Whether the pictures of a folder are in folders that are not called like parts."""
    return not tree.pictures[folder] and any(part_in(below.name) is None for below in tree.filled(folder))


def refuse_groups(root: Path, tree: Tree, found: Sequence[ClassFolder]) -> None:
    """InputError if what stands where classes do holds several folders of pictures: they may be the classes."""
    groups = [place.folder for place in found if len(tree.filled(place.folder)) > 1]
    groups = [folder for folder in groups if not own_pictures(tree, folder)]
    if not groups:
        return
    inside = [{folder.name for folder in tree.filled(group)} for group in groups]
    names = set.union(*inside)
    inner, outer = listed(sorted(names, key=natural), 5), listed(groups, 5)
    parents = {group.parent for group in groups}
    point = f"--dataset {quote(str(root / groups[0]))}"
    directly = f"put their pictures directly into them, or write {TABLE}"
    if all(map(part_in, names)):
        what = f"{outer} with folders called like parts, {inner}"
        classes = "each class needs a folder train, with its pictures directly in it"
        raise InputError(f"{root} has {what}. If one of them is the data set: {point}. If they are classes: {classes}")
    if len(parents) > 1:
        remedy = f"move them up, into {listed(sorted(parents), 3)}"
    elif len(groups) > 1 and set.intersection(*inside):
        remedy = f"call one of {outer} train, and perhaps others val and test, or use one only: {point}"
    else:
        remedy = f"move them to {root / groups[0].parent}, or use those of one folder only: {point}"
    question = f"which are the classes, {outer}, or the folders in them, {inner}?"
    raise InputError(f"{root}: {question} If it is {inner}: {remedy}. If it is {outer}: {directly}")
