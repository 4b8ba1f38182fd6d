"""Own images in an .npz file as other programs write it: every form gives the same images, or one line."""

import numpy as np
import pytest
import torch

from datasets import own_images
from utils import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 6, 5), dtype=np.uint8)
PIXELS[0, 0, :2] = 0, 255
RGB = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2], 3)
LABELS = np.arange(30) % 3


def load(file, **arrays) -> list[torch.Tensor]:
    np.savez(file, **arrays)
    train, val, test, preparation = own_images(file, None)
    assert preparation.classes == ("0", "1", "2")
    return [tensor for part in (train, val, test) for tensor in part]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some.npz"


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"x_train": PIXELS, "y_train": LABELS}, ""),
        ({"X_train": PIXELS, "Y_train": LABELS[:, None].astype(np.float32)}, ""),
        ({"images_train": PIXELS, "labels_train": LABELS}, ""),
        ({"X": PIXELS, "y": LABELS}, ""),
        (
            {"x_train": PIXELS, "y_train": np.eye(3)[LABELS]},
            "one label in 3 columns (one-hot), read as its number (1): y_train",
        ),
        ({"x_train": PIXELS, "y_train": np.eye(3, dtype=bool)[LABELS]}, "(one-hot)"),
        (
            {"x_train": PIXELS[..., None] / np.float32(255.01), "y_train": LABELS},
            "float32, taken for numbers from 0 to 1, times 255 (1)",
        ),
        (
            {"x_train": PIXELS.astype(np.float64), "y_train": LABELS},
            "float64, taken for whole numbers from 0 to 255 (1): x_train",
        ),
        (
            {"x_train": PIXELS.astype(np.int64), "y_train": LABELS},
            "int64, taken for whole numbers from 0 to 255 (1): x_train",
        ),
        ({"x_train": PIXELS[:, None], "y_train": LABELS}, "turned from (N, C, H, W) to (N, H, W, C) (1): x_train"),
    ],
)
def test_all_forms_are_the_same_images(file, capsys, arrays, said):
    expected = load(file, train_images=PIXELS, train_labels=LABELS)
    capsys.readouterr()
    found = load(file, **arrays)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    output = capsys.readouterr().out
    assert said in output and output.count("\n") == 1 + bool(said)


def test_colours_first_are_turned(file):
    expected = load(file, x_train=RGB, y_train=LABELS)
    found = load(file, x_train=RGB.transpose(0, 3, 1, 2) / 255, y_train=LABELS)
    assert expected[0].shape[1:] == (3, 6, 5)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_floats_have_one_scale_in_all_parts(file):
    """A dark test part does not make whole numbers shares of 1."""
    dark = (PIXELS % 2).astype(float)
    parts = {"x_train": PIXELS.astype(float), "y_train": LABELS, "x_test": dark, "y_test": LABELS}
    test = load(file, **parts)[4]
    assert test.max() == 1
    assert load(file, **parts | {"x_train": PIXELS / 255})[4].max() == 255


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"x_train": PIXELS / 127.5 - 1},
            "x_train must be uint8, or numbers from 0 to 1, or whole numbers from 0 to 255",
        ),
        ({"x_train": PIXELS / 127.5 - 1}, "not float64 from -1 to 1: bring them to 0 to 255; (x + 1) * 127.5 does it"),
        ({"x_train": PIXELS / 2}, "not float64 from 0 to 127.5: bring them to 0 to 255"),
        ({"x_train": PIXELS.astype(np.uint16) * 257}, "not uint16 from 0 to 65535"),
        ({"x_train": np.where(PIXELS > 250, np.nan, PIXELS)}, "not float64 from nan to nan"),
        ({"x_train": PIXELS.astype(str)}, "x_train must be numbers, uint8 at best, not <U3"),
        ({"x_train": np.zeros((30, 784), np.uint8)}, "perhaps .reshape(-1, 28, 28)"),
        ({"x_train": np.zeros((30, 3072), np.uint8)}, "perhaps .reshape(-1, 3, 32, 32) or .reshape(-1, 32, 32, 3)"),
        ({"x_train": np.zeros((30, 8, 8, 4), np.uint8)}, "leave out the fourth channel with [..., :3]"),
        ({"y_train": np.ones((30, 3))}, "30 of 30 rows of y_train have no 1 or several; several labels for an image"),
        ({"y_train": np.eye(3)[LABELS] * 0.9}, "for scores perhaps y_train.argmax(1)"),
        ({"x_test": PIXELS}, "needs both test_images and test_labels (or x_test and y_test)"),
        ({"y_train": LABELS + 0.5}, "y_train must be a whole number or a word for each of the 30 images"),
    ],
)
def test_what_is_not_read_is_one_line_with_what_to_do(file, arrays, message):
    np.savez(file, **{"x_train": PIXELS, "y_train": LABELS} | arrays)
    with pytest.raises(InputError) as error:
        own_images(file, None)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_labels_of_a_test_part_in_another_case_are_the_same_class(file, capsys):
    words = np.array(["Cat", "dog", "owl"])
    np.savez(file, x_train=PIXELS, y_train=words[LABELS], x_test=255 - PIXELS, y_test=np.char.lower(words)[LABELS])
    assert own_images(file, None)[3].classes == ("Cat", "dog", "owl")
    assert "so the same class (1): 'cat' is 'Cat'" in capsys.readouterr().out
