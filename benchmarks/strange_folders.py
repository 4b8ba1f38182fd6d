"""Strange layouts, labels and names of sets of pictures, for `python -m benchmarks.strange_inputs`."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.strange_inputs import Outcome, evaluated, noise, program, strange, write

# --- the same picture twice ---------------------------------------------------------------------------------------


@strange(0, r"30 of 30 test pictures")
def copied_test(root: Path) -> Outcome:
    """twice: the test part is a copy of the training part"""
    write(root / "set" / "train")
    shutil.copytree(root / "set" / "train", root / "set" / "test")
    return evaluated(root)


@strange(0, r"30 of 30 test pictures")
def copied_arrays(root: Path) -> Outcome:
    """twice: the same in an .npz file"""
    images, labels = noise("arrays", (30, 8, 8)), np.arange(30) % 2
    np.savez(root / "set.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return program(root, "--dataset", "set.npz")


@strange(0, r"same picture.*180|180.*(same|equal)")
def four_times(root: Path) -> Outcome:
    """twice: each picture four times in its class"""
    write(root / "set", 30)
    for file in list((root / "set").rglob("*.png")):
        for copy in "abc":
            shutil.copy(file, file.with_stem(file.stem + copy))
    return program(root)


@strange(0, r"(equal|same) picture.*dog/cat000\.png")
def two_labels(root: Path) -> Outcome:
    """twice: the same picture in two classes"""
    write(root / "set")
    shutil.copy(root / "set/cat/cat000.png", root / "set/dog/cat000.png")
    return program(root)


@strange(0, r"(equal|same) picture.*16")
def links(root: Path) -> Outcome:
    """twice: links to pictures of two classes as a third one"""
    write(root / "set")
    (root / "set/both").mkdir()
    for i in range(8):
        for name in ("cat", "dog"):
            (root / f"set/both/{name}{i}.png").symlink_to(root / f"set/{name}/{name}{i:03}.png")
    return program(root)


# --- names of parts, and where the classes are --------------------------------------------------------------------

TWO_CLASSES = r"2 classes \(cat, dog\)"


@strange(0, TWO_CLASSES)
def suffixed_parts(root: Path) -> Outcome:
    """parts: training_set and test_set"""
    write(root / "set/training_set")
    write(root / "set/test_set")
    return program(root)


@strange(0, TWO_CLASSES)
def prefixed_parts(root: Path) -> Outcome:
    """parts: seg_train/seg_train, seg_test/seg_test, and seg_pred without classes"""
    write(root / "set/seg_train/seg_train")
    write(root / "set/seg_test/seg_test")
    write(root / "set/seg_pred", 3, ("seg_pred",))
    return program(root)


@strange(2, r"batch1")
def batches(root: Path) -> Outcome:
    """parts: batch1 and batch2 with the same classes"""
    write(root / "set/batch1")
    write(root / "set/batch2")
    return program(root)


@strange(2, r"fold0")
def folds(root: Path) -> Outcome:
    """parts: fold0 to fold2 with the same classes"""
    for i in range(3):
        write(root / f"set/fold{i}")
    return program(root)


@strange((0, 2), r"animals.*(cat|below|folders)")
def groups(root: Path) -> Outcome:
    """parts: animals and plants, each with two classes"""
    write(root / "set/animals")
    write(root / "set/plants", classes=("oak", "elm"))
    return program(root)


@strange(0, r"24 to train on, .*, 6 for the test\n")
def classes_first(root: Path) -> Outcome:
    """parts: train and test inside each class"""
    for name in ("cat", "dog"):
        write(root / "set" / name, 17, ("train",))
        write(root / "set" / name, 3, ("test",))
    return program(root)


@strange(0, TWO_CLASSES)
def other_names(root: Path) -> Outcome:
    """parts: train, val1 and Eval"""
    write(root / "set/train")
    write(root / "set/val1", 4)
    write(root / "set/Eval", 4)
    return program(root)


@strange(0, TWO_CLASSES)
def part_in_itself(root: Path) -> Outcome:
    """parts: train inside train"""
    write(root / "set/train/train")
    write(root / "set/test/test", 4)
    return program(root)


@strange(0, r"2 classes \(Cat, dog\)")
def upper_and_lower_case(root: Path) -> Outcome:
    """parts: Cat in training, cat in the test"""
    write(root / "set/train", classes=("Cat", "dog"))
    write(root / "set/test", 4)
    return program(root)


@strange((0, 2), r"2 classes \(cat, dog\)|'cat '|space")
def space_in_a_name(root: Path) -> Outcome:
    """parts: a class whose name ends with a space in one of them"""
    write(root / "set/train", classes=("cat ", "dog"))
    write(root / "set/test", 4)
    return program(root)


@strange(0, "2 classes")
def two_ways_of_an_accent(root: Path) -> Outcome:
    """parts: an accent that is composed in one of them and not in the other"""
    write(root / "set/train", classes=("caf\u00e9", "dog"))
    write(root / "set/test", 4, classes=("cafe\u0301", "dog"))
    return program(root)


@strange(2, r"--dataset \S*set/pictures")
def one_level_too_deep(root: Path) -> Outcome:
    """levels: pictures/ with the classes"""
    write(root / "set/pictures")
    return program(root)


@strange((0, 2), r"set/dataset")
def parts_one_level_too_deep(root: Path) -> Outcome:
    """levels: dataset/train and dataset/test"""
    write(root / "set/dataset/train")
    write(root / "set/dataset/test", 4)
    return program(root)


@strange(2, r"images.*(\blabels|boxes|detection|--dataset)")
def boxes(root: Path) -> Outcome:
    """levels: images/train, images/val and labels/ of boxes"""
    for part in ("train", "val"):
        write(root / "set/images", 10, (part,))
        (root / f"set/labels/{part}").mkdir(parents=True)
        (root / f"set/labels/{part}/{part}000.txt").write_text("0 0.5 0.5 1 1\n")
    return program(root)


@strange(2, r"images.*(\blabels|boxes|detection|--dataset)")
def boxes_in_parts(root: Path) -> Outcome:
    """levels: train/images and train/labels of boxes"""
    for part in ("train", "valid"):
        write(root / "set" / part, 10, ("images",))
        (root / f"set/{part}/labels").mkdir()
        (root / f"set/{part}/labels/images000.txt").write_text("0 0.5 0.5 1 1\n")
    return program(root)


# --- labels in tables and arrays ----------------------------------------------------------------------------------


def flat(folder: Path, n: int = 30) -> list[tuple[str, str]]:
    """Pictures in one folder, and the rows of a table of their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(noise((folder.name, i))).save(folder / f"{i:03}.png")
    return [(f"{i:03}.png", ("cat", "dog")[i % 2]) for i in range(n)]


def table(file: Path, rows: list[tuple], header: tuple = ("file_name", "label")) -> None:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


@strange(0, TWO_CLASSES)
def table_beside(root: Path) -> Outcome:
    """table: images/ and labels.csv"""
    table(root / "set" / "labels.csv", flat(root / "set/images"))
    return program(root)


@strange(0, TWO_CLASSES)
def table_among(root: Path) -> Outcome:
    """table: pictures and metadata.csv in one folder"""
    table(root / "set" / "metadata.csv", flat(root / "set"))
    return program(root)


@strange(0, TWO_CLASSES)
def table_of_each_part(root: Path) -> Outcome:
    """table: train/, test/ and a table of each"""
    for part in ("train", "test"):
        table(root / "set" / f"{part}.csv", flat(root / "set" / part))
    return program(root)


@strange(2, r"several|two labels|multi")
def table_of_many_labels(root: Path) -> Outcome:
    """table: two columns of labels"""
    rows = flat(root / "set/images")
    table(root / "set" / "labels.csv", [(*row, "red") for row in rows], ("file_name", "label", "class"))
    return program(root)


@strange(2, r"cat")
def labels_in_file_names(root: Path) -> Outcome:
    """table: cat.0.png and dog.0.png in one folder, no table"""
    (root / "set").mkdir()
    for i in range(30):
        Image.fromarray(noise(i)).save(root / "set" / f"{('cat', 'dog')[i % 2]}.{i}.png")
    return program(root)


def arrays(root: Path, **changed: np.ndarray) -> Outcome:
    """The program on an .npz file, in which some arrays are changed, or others if they have other names."""
    usual = {"train_images": noise("arrays", (30, 8, 8)), "train_labels": np.arange(30) % 2}
    np.savez(root / "set.npz", **(changed if "x_train" in changed else usual | changed))
    return program(root, "--dataset", "set.npz")


@strange(0, r"0 to 1|float")
def floats(root: Path) -> Outcome:
    """arrays: floats from 0 to 1"""
    return arrays(root, train_images=(noise("arrays", (30, 8, 8)) / 255).astype(np.float32))


@strange(0, r"one-hot|2 classes")
def one_hot(root: Path) -> Outcome:
    """arrays: labels as one-hot rows"""
    return arrays(root, train_labels=np.eye(2)[np.arange(30) % 2])


@strange(0, r"8 x 8 RGB")
def channels_first(root: Path) -> Outcome:
    """arrays: channels before height and width"""
    return arrays(root, train_images=noise("arrays", (30, 3, 8, 8)))


@strange(0, r"2 classes")
def other_keys(root: Path) -> Outcome:
    """arrays: x_train, y_train, x_test, y_test"""
    images, labels = noise("arrays", (40, 8, 8)), np.arange(40) % 2
    return arrays(root, x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])


# --- names --------------------------------------------------------------------------------------------------------


@strange(0, r"^(?![\s\S]*Glyph)[\s\S]*recall")
def chinese_names(root: Path) -> Outcome:
    """names: classes in Chinese"""
    write(root / "set", classes=("\u732b", "\u72ac"))
    return evaluated(root)


@strange(0, r"^(?![\s\S]*\x1b\[31)[\s\S]*cat\\n")
def control_characters(root: Path) -> Outcome:
    """names: a new line and an escape sequence"""
    write(root / "set", classes=("cat\nand more", "dog\x1b[31m"))
    (root / "set/dog\x1b[31m/no\npicture.txt").touch()
    return evaluated(root)


@strange(0, r"2 classes")
def bytes_that_are_no_text(root: Path) -> Outcome:
    """names: bytes that are no Unicode"""
    write(root / "set", classes=(os.fsdecode(b"caf\xe9"), "dog"))
    return evaluated(root)


# --- classes of very different sizes ------------------------------------------------------------------------------


@strange(0, r"owl.* 1 of|rare.*owl")
def a_rare_class(root: Path) -> Outcome:
    """rare: five pictures of a class among 600"""
    write(root / "set", 300)
    write(root / "set", 5, ("owl",))
    return program(root)
