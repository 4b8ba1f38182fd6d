"""Labels in a table: which pictures get which class and part, and what doesn't fit together is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import train
from datasets import own_images
from utils import InputError

CAT, DOG = 40, 200  # the brightness of a picture tells its class


def draw(root: Path, names: str, shade: int) -> list[str]:
    """Pictures of one shade and some noise; returns their names."""
    for i, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(i).integers(shade - 20, shade + 20, (4, 4), dtype=np.uint8)
        Image.fromarray(grey).save(root / name)
    return names.split()


@pytest.fixture
def root(tmp_path) -> Path:
    """Six cats and six dogs without any order but that of their names, in images/."""
    draw(tmp_path / "set", " ".join(f"images/{i:02}.png" for i in range(0, 12, 2)), CAT)
    draw(tmp_path / "set", " ".join(f"images/{i:02}.png" for i in range(1, 12, 2)), DOG)
    return tmp_path / "set"


def rows(name: str, n: int = 12) -> str:
    """Lines for n pictures; {} of the name is the number."""
    return "\n".join(f"{name.format(f'{i:02}')},{'cat' if i % 2 == 0 else 'dog'}" for i in range(n))


def right(path: Path) -> list[int]:
    """The sizes of training, validation and test part, if all labels are right."""
    found = own_images(path, None)
    assert found[3].classes == ("cat", "dog")
    for part in found[:3]:
        assert torch.equal(part.labels, (part.pixels.float().mean((1, 2, 3)) > 120).long())
    return [len(part.labels) for part in found[:3]]


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        own_images(path, None)
    assert "\n" not in str(error.value)
    return str(error.value)


FORMS = [  # names of the columns, the name of a file, the line before and after
    ("file_name,label", "images/{}.png"),
    ("filename,class", "{}.png"),
    ("Image ID,Category", "{}"),
    ("path,target", "./images/{}"),
    ("id,label", "data/set/images/{}.png"),
    ("image,label", r"C:\me\set\images\{}.png"),
]


@pytest.mark.parametrize("columns, name", FORMS)
def test_names_of_files_are_understood_with_and_without_suffix_and_folder(root, columns, name, capsys):
    (root / "labels.csv").write_text(f"{columns}\n{rows(name)}\n")
    assert right(root) == [8, 2, 2]
    said = capsys.readouterr().out
    assert f"labels from labels.csv, columns {columns.replace(',', ' and ')}\n" in said and "left out" not in said


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace(",", ";").replace("\n", "\r\n").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace(",", ", ").replace("cat", '"cat"').encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
        lambda text: (
            text.replace("file_name,label", ",file_name,label").replace("\n0", "\n7,0").replace("\n1", "\n8,1").encode()
        ),
    ],
    ids=["BOM", "semicolons", "tabs", "quotes", "empty lines", "index column"],
)
def test_tables_are_read_as_programs_write_them(root, encode):
    (root / "metadata.csv").write_bytes(encode(f"file_name,label\n{rows('{}.png')}\n"))
    assert right(root) == [8, 2, 2]


def test_a_table_is_named_by_the_flag_or_found_in_the_folder(root, capsys):
    (root / "mine.csv").write_text(f"image,label\n{rows('{}')}\n")
    assert right(root / "mine.csv") == [8, 2, 2]
    assert datasets.short_name(str(root / "mine.csv")) == "mine"
    assert datasets.short_name(str(root / "labels.csv")) == datasets.short_name(str(root)) == "set"
    args = train.parse_arguments(["--dataset", str(root / "mine.csv")])
    assert (args.dataset, args.run_dir) == (str(root / "mine.csv"), Path("runs/mine"))


def test_a_column_says_the_part(root, capsys):
    split = ["train"] * 6 + ["Validation"] * 2 + ["test"] * 4
    lines = [f"{line},{part}" for line, part in zip(rows("{}").splitlines(), split, strict=True)]
    (root / "labels.csv").write_text("\n".join(["id,label,split", *lines]))
    assert right(root) == [6, 2, 4]
    (root / "labels.csv").write_text("\n".join(["id,label,split", *lines[:-1], "11,dog,3"]))
    assert "column split has 3 in 1 rows, where train, val or test is needed" in refused(root)


def test_a_table_for_each_part(tmp_path, capsys):
    """As competitions have them: pictures of the same names in train and test, those of the test without labels."""
    for part in ("train", "test"):
        draw(tmp_path, f"{part}/0.png {part}/1.png {part}/2.png {part}/3.png", CAT)
        draw(tmp_path, f"{part}/4.png {part}/5.png {part}/6.png {part}/7.png", DOG)
    labels = "\n".join(f"{i},{'cat' if i < 4 else 'dog'}" for i in range(8))
    (tmp_path / "train.csv").write_text(f"id,label\n{labels}")
    (tmp_path / "test.csv").write_text("id\n0\n1")
    assert right(tmp_path) == [4, 2, 2]
    said = capsys.readouterr().out
    assert "left out, gives no labels to pictures that are here (1): test.csv" in said
    assert "left out, no row in test.csv, train.csv (8): test/0.png" in said
    (tmp_path / "test.csv").write_text(f"id,label\n{labels}")
    assert right(tmp_path) == [6, 2, 8]
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").rename(tmp_path / part / "metadata.csv")
    assert right(tmp_path) == [6, 2, 8]
    (tmp_path / "train" / "metadata.csv").unlink()
    (tmp_path / "test" / "metadata.csv").unlink()
    (tmp_path / "labels.csv").write_text(
        "image,label\n" + "\n".join(f"{part}/{line}" for part in ("train", "test") for line in labels.splitlines())
    )
    assert right(tmp_path) == [6, 2, 8]  # the folders say the part
    (tmp_path / "labels.csv").write_text(f"image,label\n{labels}")
    assert "8 names fit several pictures: 0 (test/0.png, train/0.png), 1" in refused(tmp_path)


def test_a_table_of_the_test_alone_does_not_hide_the_training_folders(tmp_path, capsys):
    draw(tmp_path, "train/cat/0.png train/cat/1.png train/cat/2.png train/cat/3.png test/0.png", CAT)
    draw(tmp_path, "train/dog/0.png train/dog/1.png train/dog/2.png train/dog/3.png test/1.png", DOG)
    (tmp_path / "Test.csv").write_text("ClassId,Path\ncat,test/0.png\ndog,test/1.png")
    assert right(tmp_path) == [4, 2, 2]
    assert "left out, no part with a folder for each class (1): test" in capsys.readouterr().out
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
    (tmp_path / "Train.csv").write_text("\n".join(["ClassId,Path", *(f"{name[:3]},train/{name}" for name in names)]))
    assert right(tmp_path) == [6, 2, 2]


def test_pictures_may_be_elsewhere(root, tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "a.csv").write_text(f"path,label\n{rows('../set/images/{}.png')}")
    assert right(tmp_path / "table" / "a.csv") == [8, 2, 2]
    (tmp_path / "table" / "a.csv").write_text(f"path,label\n{rows(str(root / 'images' / '{}.png'))}")
    assert right(tmp_path / "table" / "a.csv") == [8, 2, 2]


def test_what_does_not_fit_is_said_with_counts_and_names(root, capsys):
    text = rows("{}.png", 10) + "\n12.png,cat\n13.png,dog\n10.png,\n08.png,cat\n"
    (root / "labels.csv").write_text(f"file_name,label\n{text}")
    (root / "notes.txt").touch()
    assert right(root) == right(root / "labels.csv") == [6, 2, 2]
    said, again = capsys.readouterr().out.split("2 classes")[:2]
    for line in (
        "left out, rows of labels.csv without a picture (2): 12.png, 13.png\n",
        "left out, no label in labels.csv (1): 10.png\n",
        "rows of labels.csv that are there twice, used once (1): 08.png\n",
        "left out, no row in labels.csv (2): images/10.png, images/11.png\n",
        "left out, no picture (1): notes.txt\n",
    ):
        assert line in said and line in again


MISFITS = [  # the table, what is said
    (f"file_name,label\n{rows('{}')}\n00,dog", "1 rows name a picture again, with other labels: 00 (cat, dog)"),
    (f"split,id,label\n{rows('test,{}')}\ntrain,00,cat", "name a picture again, with other parts: 00 (test, train)"),
    (f"name,label\n{rows('{}')}", "has no column of file names, such as file_name: its first line has name, label"),
    (f"image,species\n{rows('{}')}", "has no column of classes, such as label: its first line has image, species"),
    (rows("{}.png"), "its first line has 00.png, cat"),
    ("", "its first line has nothing"),
    ("image,label", "has no line below the names of the columns"),
    ("image,cat,dog\n00,1,0\n01,0,1", "cat, dog look like several labels, and one is needed"),
    ("image,label,target\n00,cat,1\n02,cat,2\n01,dog,1", "several columns of labels, label, target"),
    (f"image,label\n{rows('{}', 11)}\n11,cat|dog", "cat|dog looks like several labels"),
    (f"image,label\n{rows('{}').replace('dog', 'x,dog')}", "line 3 has 3 fields, and the first line 2"),
    (f"image,label\n{rows('x{}')}", "12 of 12 rows name no picture that is there: x00, x01, "),
    (f"image,label\n{rows('{}', 5)}\n{rows('x{}', 6)}", "6 of 11 rows name no picture that is there"),
    ('image,label\n"00,cat\n01,dog', "no CSV file that can be read"),
    ("image,label\n00,chaton n\xe9".encode("latin-1"), "is not in UTF-8 (byte 24): save it as CSV in UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize("text, message", MISFITS, ids=[row[1] for row in MISFITS])
def test_what_is_wrong_with_a_table_is_one_line(root, text, message):
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for path in (root, root / "labels.csv"):
        line = refused(path)
        assert message in line and "labels.csv" in line


def test_numbers_and_words_for_the_same_classes_are_one_column(root):
    numbered = rows("{}").replace(",cat", ",0,cat").replace(",dog", ",1,dog")
    (root / "labels.csv").write_text(f"id,label,class_name\n{numbered}")
    assert right(root) == [8, 2, 2]


def test_a_table_in_a_folder_of_its_own_is_found(root):
    (root / "annotations").mkdir()
    (root / "annotations" / "labels.csv").write_text(f"id,label\n{rows('{}')}")
    assert right(root) == [8, 2, 2]


def test_two_tables_are_not_chosen_from(root):
    for name in ("labels.csv", "metadata.csv"):
        (root / name).write_text(f"id,label\n{rows('{}')}")
    assert "2 tables that give labels, labels.csv, metadata.csv: name one, as --dataset " in refused(root)
    assert right(root / "labels.csv") == [8, 2, 2]


def test_a_table_about_something_else_does_not_hide_the_folders(tmp_path, capsys):
    draw(tmp_path, "cat/0.png cat/1.png cat/2.png cat/3.png", CAT)
    draw(tmp_path, "dog/0.png dog/1.png dog/2.png dog/3.png", DOG)
    (tmp_path / "metadata.csv").write_text("file_name,caption\ncat/0.png,a cat")
    assert right(tmp_path) == [4, 2, 2]
    said = capsys.readouterr().out
    assert "no column of classes, such as label: its first line has file_name, caption; it is not used" in said
    (tmp_path / "metadata.csv").write_text("id,label\nA,x\nB,y")
    assert right(tmp_path) == [4, 2, 2]
    said = capsys.readouterr().out
    assert "2 of 2 rows name no picture that is there: A, B (a picture is called cat/0.png); it is not used" in said
    lines = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(3)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert right(tmp_path) == [2, 2, 2]  # the table is what was asked for
