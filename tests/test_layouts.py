"""Folders as people really lay them out: what is a class, what is a part, and what is refused with the choices."""

import itertools
import re
from pathlib import Path

import pytest
from PIL import Image

import settings
import train
from datasets import own_images
from folders import part_in
from utils import InputError


def expand(pattern: str) -> list[str]:
    """As a shell: a/{x,y} are a/x and a/y."""
    pieces = re.split(r"\{([^}]*)\}", pattern)
    choices = [piece.split(",") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def write(root: Path, *patterns: str, n: int = 4) -> Path:
    """Files of these names; n pictures in each folder whose name ends with a slash."""
    for name in itertools.chain(*map(expand, patterns)):
        files = [f"{name}{i}.png" for i in range(n)] if name.endswith("/") else [name]
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            if file.endswith(".png"):
                Image.effect_noise((4, 4), 200).save(root / file)
            else:
                (root / file).write_text("0 0.5 0.5 1 1")
    return root


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        own_images(path, None)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


PARTS = [  # folders, pictures in each part, what is said
    ("training_set/{cat,dog}/ test_set/{cat,dog}/", [6, 2, 8], "part (2): test_set (test), training_set (train)"),
    ("TrainData/{cat,dog}/ testset/{cat,dog}/", [6, 2, 8], "TrainData (train), testset (test)"),
    ("seg_train/seg_train/{cat,dog}/ seg_test/seg_test/{cat,dog}/ seg_pred/seg_pred/", [6, 2, 8], "(1): seg_pred\n"),
    ("train/{cat,dog}/ Eval/{cat,dog}/", [6, 2, 8], "taken for a part (1): Eval (test)"),
    ("train/{cat,dog}/ Eval/{cat,dog}/ test/{cat,dog}/", [8, 8, 8], "taken for a part (1): Eval (val)"),
    ("train/{cat,dog}/ val1/{cat,dog}/ test/{cat,dog}/", [8, 8, 8], "taken for a part (1): val1 (val)"),
    ("train/train/{cat,dog}/ test/{cat,dog}/", [6, 2, 8], "taken for a part (1): train/train (train)"),
    ("{cat,dog}/{train,test}/", [6, 2, 8], "parts inside the folders of the classes (4): cat/test (test), cat/train"),
    ("{cat,dog}/{Training,valid,eval}/ cat/cover.png", [8, 8, 8], "in no folder of a class (1): cat/cover.png"),
    ("train_{cat,dog}/", [4, 2, 2], "2 classes (train_cat, train_dog)"),  # a word alone makes no part
    ("train/{cat,dog}/ val_old/", [4, 2, 2], "left out, no part with a folder for each class (1): val_old"),
    ("{cat,dog}/ cat/2021/", [7, 3, 2], "below the folder of a class, so counted as that class (1): cat/2021"),
    ("{cat,dog}/ cat/{2020,2021}/", [9, 4, 3], "so counted as that class (2): cat/2020, cat/2021"),
    ("{cat,dog}/images/", [4, 2, 2], "so counted as that class (2): cat/images, dog/images"),
    ("{cat,dog}/ labels/0.txt images/0.txt", [4, 2, 2], "left out, no picture in it (2): images, labels"),
]  # fmt: skip


@pytest.mark.parametrize("folders, parts, said", PARTS, ids=[row[0] for row in PARTS])
def test_parts_and_classes_under_other_peoples_names(tmp_path, capsys, folders, parts, said):
    found = own_images(write(tmp_path, *folders.split()), None)
    assert [len(part.labels) for part in found[:3]] == parts
    output = capsys.readouterr().out
    assert said in output and ("2 classes (cat, dog)" in output or folders.startswith("train_"))


def test_the_classes_of_a_part_are_those_of_its_folders(tmp_path):
    root = write(tmp_path, "{cat,dog}/{train,test}/")
    for name, shade in (("cat", 10), ("dog", 160)):
        for i, file in enumerate((root / name).rglob("*.png")):
            image = Image.new("L", (4, 4), shade + 40 * ("test" in file.parts))
            image.putpixel((3, 3), 255 - i)
            image.save(file)
    train, val, test, preparation = own_images(root, None)
    assert preparation.classes == ("cat", "dog")
    for part, shades in ((train, (10, 160)), (val, (10, 160)), (test, (50, 200))):
        assert part.pixels[:, 0, 0, 0].tolist() == [shades[label] for label in part.labels]


UNCLEAR = [  # folders, what the line must name
    ("fold{0,1,2}/{cat,dog}/", "fold0, fold1, fold2, or the folders in them, cat, dog?", "--dataset {}/fold0"),
    ("batch{1,2}/{cat,dog}/", "call one of batch1, batch2 train", "--dataset {}/batch1"),
    ("{kept,augmented}/{cat,dog}/", "which are the classes, augmented, kept, or", "--dataset {}/augmented"),
    ("animals/{cat,dog}/ plants/{oak,elm}/", "which are the classes, animals, plants, or", "oak: move them to {},"),
    ("animals/{cat,dog}/ oak/", "the classes, animals, or the folders in them, cat, dog?", "--dataset {}/animals"),
    ("animals/{cat,dog}/ animals/cover.png oak/", "the classes, animals, or the folders in them", ""),
    ("train/animals/{cat,dog}/ train/plants/{oak,elm}/", "train/animals, train/plants, or", "move them to {}/train"),
    ("{train,test}/data/{cat,dog}/", "test/data, train/data, or the folders", "move them up, into test, train"),
    ("{cat,dog}/{train,test}/ owl/", "has cat, dog with folders called like parts, test, train", "a folder train"),
    ("fold{1,2}/{train,test}/{cat,dog}/", "fold1, fold2 with folders called like parts", "--dataset {}/fold1"),
    ("set/{train,test}/{cat,dog}/ docs/", "has set with folders called like parts", "--dataset {}/set"),
    ("train/{cat,dog}/ val{1,2}/{cat,dog}/", "the parts train, val1, val2", "one test; rename the others"),
    ("{train,val,test,eval}/{cat,dog}/", "the parts eval, test, train, val", "rename the others"),
    ("pictures/{cat,dog}/", "{}/pictures has 2 folders with pictures: --dataset {}/pictures", ""),
    ("dataset/{train,test}/{cat,dog}/ cover.png", "{}/dataset has 2 folders with pictures: --dataset {}/dataset", ""),
    ("a/b/{cat,dog,owl}/", "{}/a/b has 3 folders with pictures: --dataset {}/a/b", ""),
    ("images/{train,val}/ labels/{train,val}/0.txt", "images beside labels is a layout for detection", "labels.csv"),
    ("{train,test}/images/ {train,test}/labels/0.txt", "test/images beside test/labels is a", "(YOLO, Roboflow, VOC)"),
    ("VOC/{JPEGImages,SegmentationClass}/ VOC/Annotations/0.xml", "VOC/JPEGImages beside VOC/Annotations", ""),
    ("{sick,well}/{images,masks}/", "sick/images beside sick/masks is a layout", "nothing but its pictures"),
    ("Images/{cat,dog}/ Annotation/cat/0.xml", "{}/Images has 2 folders with pictures: --dataset {}/Images", ""),
    ("{train,val}2017/ annotations/0.json", "needs a folder of pictures a class", "not pictures in train2017 and val"),
    ("{cat,dog}.{0,1,2}.png", "names of pictures begin with cat, dog", "sort them into folders cat, dog"),
    ("train/{cat,dog}.{0,1,2}.png test1/{1,2}.png", "not pictures in test1 and train", "into folders cat, dog"),
    ("images/{cat,dog}.{0,1,2}.png", "has one class only, images", "sort them into folders cat, dog"),
    ("IMG_{0,1,2,3}.png", "or a table, labels.csv, with the columns file_name and label", ""),
    ("mine.npz", "--dataset {}/mine.npz", ""),
    ("mine.csv 0.png 1.png", "--dataset {}/mine.csv", ""),
    ("all.zip", "unpack all.zip", ""),
    ("x.npy labels.xlsx 0.png", "labels of labels.xlsx are read as CSV only", "x.npy are read from one .npz file"),
]  # fmt: skip


@pytest.mark.parametrize("folders, first, second", UNCLEAR, ids=[row[0] for row in UNCLEAR])
def test_what_cannot_be_decided_names_the_choices(tmp_path, folders, first, second):
    message = refused(write(tmp_path, *folders.split()))
    assert first.format(tmp_path, tmp_path) in message and second.format(tmp_path) in message


def test_the_folder_to_point_to_can_be_pasted(tmp_path):
    assert f"--dataset '{tmp_path}/my set/pictures'" in refused(write(tmp_path / "my set", "pictures/{cat,dog}/"))


def test_a_part_is_a_word_of_a_name():
    assert [part_in(name) for name in ("train", "trainLabels", "x-Training_2", "TRAIN")] == ["train"] * 4
    assert [part_in(name) for name in ("val1", "x_Validation", "DevSet")] == ["val"] * 3
    for name in ("trained", "evaluate", "trainval", "train_test", "contest", "latest", "valley", ""):
        assert part_in(name) is None


def test_names_that_differ_in_case_spaces_or_accents_are_one_class_in_all_parts(tmp_path, capsys):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = write(tmp_path, "train/{Cat,dog}/", f"train/{composed}/", "test/{cat,dog }/", f"test/{decomposed}/")
    assert own_images(root, None)[3].classes == ("Cat", composed, "dog")
    said = capsys.readouterr().out
    assert "the same class (3): 'caf" in said and r"'cafe\u0301' is 'caf\xe9', 'cat' is 'Cat', 'dog ' is 'dog'" in said
    assert "3 classes (Cat," in said and "9 to train on, 3 for validation, 12 for the test" in said


def test_names_in_one_folder_that_look_the_same_are_refused_and_letters_are_not(tmp_path, capsys):
    root = write(tmp_path / "letters", "{a,A,b}/")
    assert own_images(root, None)[3].classes == ("A", "a", "b")
    assert "different classes, though their names differ in case only (1): A and a" in capsys.readouterr().out
    write(root, "b /")
    assert "the classes 'b' and 'b ' differ only in spaces" in refused(root)
    root = write(tmp_path / "parts", "train/{a,A}/", "test/{a,A}/")
    assert own_images(root, None)[2].labels.bincount().tolist() == [4, 4]


def test_control_characters_in_names_are_written_out(tmp_path, capsys):
    root = write(tmp_path / "s\x1b[2Jet", "{ca\nt,d\x1b[31mog}/", "x\r\u2028y.txt")
    assert own_images(root, None)[3].classes == ("ca\\nt", "d\\x1b[31mog")
    said = capsys.readouterr().out
    assert r"left out, no picture (1): x\r\u2028y.txt" in said and r"2 classes (ca\nt, d\x1b[31mog)" in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028]", said) and rf"{tmp_path}/s\x1b[2Jet: " in said


def test_the_message_of_an_error_has_no_control_characters(tmp_path, capsys):
    write(tmp_path / "set", "d\x1b[31mog/")
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dataset", str(tmp_path / "set"), "--run_dir", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert r"has one class only, d\x1b[31mog" in capsys.readouterr().err


def test_a_path_that_is_not_there_says_so(tmp_path):
    (tmp_path / "notes.txt").touch()
    for name, message in (
        ("nowhere", "nowhere' does not exist; give one"),
        ("notes.txt", "notes.txt' is no folder, and"),
    ):
        with pytest.raises(settings.argparse.ArgumentTypeError, match=message):
            settings.dataset_name(str(tmp_path / name))
