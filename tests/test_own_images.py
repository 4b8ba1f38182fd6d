"""One's own images as people really have them: what is used, what is left out with a word, what travels along."""

import inspect
import io
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_wiring import InProcess

import datasets
import evaluation
import plots
import settings
import train
import utils
from datasets import own_images
from pictures import prepare
from utils import InputError

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_data.md").read_text()
CLASSES = ("cat", "dog", "owl")


def noise(i: int, size: int | tuple[int, ...] = 8) -> np.ndarray:
    shape = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def write(root: Path, n: int = 6, classes=CLASSES, size: int = 8) -> Path:
    """A folder of grey pictures for each class; the number of a class is a brightness."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(noise(i, size) // 4 + 60 * (label % 4)).save(root / name / f"{i:03}.png")
    return root


def sizes(path: Path) -> list[int]:
    return [len(part.labels) for part in own_images(path, None)[:3]]


def everything(path: Path) -> torch.Tensor:
    return torch.cat([part.pixels for part in own_images(path, None)[:3]])


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        own_images(path, None)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


# --- which pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("training", "validation", "testing"), ("Train", "Valid", "TEST"), ("TRAINING", "dev", "test")]
)
def test_the_usual_names_of_parts_are_known_in_any_case(tmp_path, names, capsys):
    for name, n in zip(names, (5, 2, 3), strict=True):
        write(tmp_path / "set" / name, n)
    write(tmp_path / "set" / "unlabelled", 1)
    assert sizes(tmp_path / "set") == [15, 6, 9]
    assert "left out, no part with a folder for each class (1): unlabelled" in capsys.readouterr().out
    arrays = {
        f"{name}_{kind}": value
        for name, n in zip(names, (30, 6, 9), strict=True)
        for kind, value in (("images", noise(n, (n, 8, 8))), ("labels", np.arange(n) % 3))
    }
    np.savez(tmp_path / "set.NPZ.npz", **arrays, extra_images=np.zeros(3))
    (tmp_path / "set.NPZ.npz").rename(tmp_path / "set.NPZ")
    assert sizes(tmp_path / "set.NPZ") == [30, 6, 9]
    assert "left out, not the images or labels of a part (1): extra_images" in capsys.readouterr().out
    assert settings.dataset_name(str(tmp_path / "set.NPZ")) and datasets.short_name(str(tmp_path / "set.NPZ")) == "set"


def test_parts_are_never_taken_for_classes_unasked(tmp_path, capsys):
    for name in ("val", "test"):
        write(tmp_path / "a" / name)
    assert "has the parts test, val: it needs one called train" in refused(tmp_path / "a")
    write(tmp_path / "a" / "train")
    write(tmp_path / "a" / "valid")
    assert "has the parts test, train, val, valid" in refused(tmp_path / "a")  # which one?
    assert "not pictures in test and train themselves" in refused(write(tmp_path / "b", 3, ("train", "test")))
    assert sizes(write(tmp_path / "c", 5, ("bus", "car", "train"))) == [9, 3, 3]
    assert "called like a part, but without folders, so taken for a class (1): train" in capsys.readouterr().out


def test_loose_pictures_and_an_empty_class_are_named_and_the_rest_is_used(tmp_path, capsys):
    write(tmp_path / "set" / "train", 5)
    write(tmp_path / "loose", 1, ("test",))
    (tmp_path / "loose" / "test").rename(tmp_path / "set" / "test")
    Image.fromarray(noise(0)).save(tmp_path / "set" / "train" / "cover.png")
    (tmp_path / "set" / "train" / "yak").mkdir()
    assert sizes(tmp_path / "set") == [9, 3, 3]
    said = capsys.readouterr().out
    for line in (
        "left out, no part with a folder for each class (1): test",
        "left out, in no folder of a class (1): train/cover.png",
        "left out, no picture in it (1): train/yak",
        "3 classes (cat, dog, owl)",
    ):
        assert line in said


def test_a_class_that_a_part_lacks_is_named(tmp_path, capsys):
    write(tmp_path / "set" / "train", 5)
    write(tmp_path / "set" / "test", 2, ("cat", "owl"))
    assert sizes(tmp_path / "set") == [12, 3, 4]
    assert "no picture for test, class left out there (1): dog" in capsys.readouterr().out


def test_hidden_files_and_folders_are_left_out(tmp_path, capsys):
    root = write(tmp_path / "set", 5)
    for folder in (".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints", "cat/@eaDir"):
        (root / folder).mkdir()
        Image.fromarray(noise(0)).save(root / folder / "000.png")
    (root / "dog" / "._000.png").write_bytes(b"no picture")
    assert sizes(root) == [9, 3, 3]
    assert "left out, hidden (5): .ipynb_checkpoints, __MACOSX, cat/" in capsys.readouterr().out


def test_every_real_folder_is_read_once(tmp_path, capsys, monkeypatch):
    root = write(tmp_path / "set", 5)
    write(tmp_path / "elsewhere", 4, ("yak",))
    (root / "cat" / "loop").symlink_to(root)
    (root / "aardvark").symlink_to(root / "dog")
    (root / "yak").symlink_to(tmp_path / "elsewhere" / "yak")
    (root / "owl" / "secret").mkdir()
    listing = os.scandir

    def scandir(folder):
        if Path(folder).name == "secret":
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert sum(sizes(root)) == 19
    said = capsys.readouterr().out
    assert "left out, read already, this is a link to it (2): aardvark, cat/loop" in said
    assert "left out, can't be listed (1): owl/secret" in said and "4 classes (cat, dog, owl, yak)" in said


@pytest.mark.parametrize("parts", [False, True])
def test_the_programs_own_runs_are_no_class(tmp_path, capsys, parts, monkeypatch):
    """As after `cd set; train.py --dataset .`."""
    write(tmp_path / "set" / "train" if parts else tmp_path / "set", 5)
    monkeypatch.chdir(tmp_path / "set")
    root = Path(".")
    for run, file in (("runs/set", "children.jsonl"), ("train/cat/x" if parts else "cat/x", "best_child-k3f8p0.pt2")):
        (root / run).mkdir(parents=True)
        (root / run / file).touch()
        Image.fromarray(noise(0)).save(root / run / "search.png")
    assert sizes(root) == [9, 3, 3]
    said = capsys.readouterr().out
    assert f"left out, a run of this program (2): {'runs/set, train/cat/x' if parts else 'cat/x, runs/set'}\n" in said
    assert said.count("left out") == 1


def test_classes_are_in_the_order_of_numbers(tmp_path):
    names = [str(i) for i in range(1, 13)]
    assert own_images(write(tmp_path / "set", 3, names), None)[3].classes == tuple(names)
    for i, labels in enumerate((range(-2, 10), [f"c{i}" for i in range(12)], [f"c{i}".encode() for i in range(12)])):
        file = tmp_path / f"{i}.npz"
        np.savez(file, train_images=noise(0, (48, 8, 8)), train_labels=[*labels][::-1] * 4)
        train, *_, preparation = own_images(file, None)
        assert preparation.classes == tuple(x.decode() if isinstance(x, bytes) else str(x) for x in labels)
        assert train.labels.bincount().tolist() == [2] * 12


# --- pixels -------------------------------------------------------------------------------------------------------

DEEP = {
    "12 bits.png": lambda grey: grey.astype(np.uint16) * 16,
    "8 bits.png": lambda grey: grey.astype(np.uint16),
    "16 bits.png": lambda grey: grey.astype(np.uint16) * 257,
    "32 bits.tif": lambda grey: grey.astype(np.int32) * 257,
    "warm.tif": lambda grey: grey.astype(np.int32) + 30_000,
    "unit.tif": lambda grey: (grey / 255).astype(np.float32),
    "large.tif": lambda grey: 257 * grey.astype(np.float32),
    "nan.tif": lambda grey: np.where(grey == grey.min(), np.nan, grey).astype(np.float32),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_has_one_scale_for_the_whole_set(tmp_path, name, capsys):
    """The pictures are those of 8 bits, stretched to the set's range."""
    root = write(tmp_path / "set", 3)
    for file in root.rglob("*.png"):
        grey = np.asarray(Image.open(file))
        file.unlink()
        Image.fromarray(DEEP[name](grey)).save(file.with_suffix(name[-4:]))
    darkest = 0 if "nan" in name else 1
    found, plain = everything(root).float(), everything(write(tmp_path / "plain", 3)).float()
    assert found.shape == plain.shape and found.min() == 0 and found.max() == 255
    stretched = (plain - plain.min()) / (plain.max() - plain.min()) * 255
    assert (found - stretched).abs().flatten().sort().values[: -1 - 9 * (1 - darkest)].max() < 8
    assert capsys.readouterr().out.count("more than 8 bits, grey of") == 1
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "cat" / "flat.png")
    if name == "warm.tif":  # where black makes the range of the set a hundred times wider
        assert "10 of 10 pictures have nearly the same colour everywhere, all of class cat, dog, owl" in refused(root)
    else:
        own_images(root, None)
    assert f"nearly the same colour everywhere ({10 if name == 'warm.tif' else 1}): cat/" in capsys.readouterr().out


def test_colours_of_16_bits_are_named(tmp_path, capsys):
    """Pillow drops their lower 8 bits, and can't write such a file."""
    root = write(tmp_path / "set", 3)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + np.full((8, 3), 4095, ">u2").tobytes() for _ in range(8))
    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (root / "cat" / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    own_images(root, None)
    assert "with 16 bits a colour, of which the upper 8 are used (1): cat/deep.png" in capsys.readouterr().out


def test_what_is_transparent_is_grey_whatever_its_hidden_colour(tmp_path, capsys):
    root, expected = tmp_path / "icons", []
    for name, ink in (("black", 0), ("white", 255)):
        (root / name).mkdir(parents=True)
        for i, hidden in enumerate((0, 255, 7)):
            shape = np.zeros((8, 8), np.uint8)
            shape[2 + i : 6, 2:6] = 255
            grey = np.where(shape > 0, ink, hidden).astype(np.uint8)
            Image.fromarray(np.stack([grey, shape], 2), "LA").save(root / name / f"{i}.png")
            expected.append(np.where(shape > 0, ink, 128).astype(np.uint8).tobytes())
    assert sorted(image.numpy().tobytes() for image in everything(root)) == sorted(expected)
    said = capsys.readouterr().out
    assert "with an alpha channel, what is transparent becomes grey (6): black/0.png" in said and "same" not in said


def test_pictures_without_anything_special_stay_as_they_are():
    grey, colour = noise(0), np.stack([noise(i) for i in range(3)], 2)
    opaque = np.dstack([colour, np.full((8, 8), 255, np.uint8)])
    for image, channels, expected in (
        (Image.fromarray(grey), 1, grey[None]),
        (Image.fromarray(grey), 3, np.stack([grey] * 3)),
        (Image.fromarray(colour), 3, colour.transpose(2, 0, 1)),
        (Image.fromarray(opaque), 3, colour.transpose(2, 0, 1)),
        (Image.new("LAB", (8, 8), (255, 128, 128)), 1, np.full((1, 8, 8), 255)),
        (Image.fromarray(grey).quantize(256), 1, grey[None]),
        (Image.fromarray(grey).convert("1"), 1, np.asarray(Image.fromarray(grey).convert("1").convert("L"))[None]),
    ):
        assert np.array_equal(prepare(image, (8, 8), channels, (0, 65535)), expected)


# --- what can't be used -------------------------------------------------------------------------------------------


def test_three_bad_pictures_are_left_out_and_more_stop_with_all_their_names(tmp_path, capsys):
    root = write(tmp_path / "set", 10)
    bad = [root / "cat" / "007.png", root / "dog" / "008.png", root / "owl" / "009.png", root / "owl" / "008.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:60])
    bad[1].write_text("hello")
    bad[2].write_bytes(b"")
    assert sum(sizes(root)) == 27
    left_out = "left out, 3 of 30 can't be read as pictures: "
    assert left_out in (said := capsys.readouterr().out)
    for part in ("1 an empty file (owl/009.png)", "1 text (dog/008.png)", "1 image file is truncated (cat/007.png)"):
        assert part in said
    bad[3].write_bytes(b"")
    message = refused(root)
    assert "4 of 30 can't be read as pictures: 2 an empty file (owl/008.png, owl/009.png), 1 " in message
    assert "1 more than may be left out: mend or remove them" in message
    assert "cat/007.png" in message and "dog/008.png" in message


def test_of_a_large_set_one_in_a_hundred_may_be_bad(tmp_path):
    root = write(tmp_path / "set", 140, size=4)
    for i in range(4):
        (root / "cat" / f"{i:03}.png").write_bytes(b"")
    assert sum(sizes(root)) == 416
    (root / "cat" / "004.png").write_bytes(b"")
    assert "5 of 420 can't be read" in refused(root)


@pytest.mark.parametrize("labels", [np.array([{}] * 9, object), np.array(["a", None, 3] * 3, object)])
def test_labels_that_are_objects_are_not_to_be_loaded_unsafely(tmp_path, labels):
    np.savez(tmp_path / "x.npz", train_images=np.zeros((9, 8, 8), np.uint8), train_labels=labels)
    message = refused(tmp_path / "x.npz")
    assert "train_labels holds Python objects" in message and ".astype(str)" in message and "unsafe" not in message
    (tmp_path / "y.npz").write_text("<html>not found</html>")
    assert "another kind of file" in refused(tmp_path / "y.npz")


def test_too_little_memory_is_said_in_gigabytes(tmp_path, monkeypatch):
    def empty(shape, dtype):
        raise MemoryError

    root = write(tmp_path / "set", 5)
    monkeypatch.setattr(np, "empty", empty)
    message = r"15 pictures of 1000 x 1000 need 0\.015 GB of memory.*--image_size"
    with pytest.raises(InputError, match=message):
        own_images(root, 1000)
    monkeypatch.undo()
    monkeypatch.setattr(os, "sysconf", lambda name: 5000)  # a page has 5,000 bytes, and there are as many of them
    with pytest.raises(InputError, match=message):
        own_images(root, 1000)


# --- the program --------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, tmp_path, undrawn):
    """The program in this process: evaluate trains really, but a step only; children are stand-ins."""

    def attempt(run, workers, architecture, seed):
        return {"val_accuracy": 0.5 + seed % 997 / 2000, "parameters": 5, "flops": 5, "seconds": 0.001}

    InProcess.made = []
    for module in (settings, evaluation):
        monkeypatch.setattr(module, "Workers", InProcess)
    monkeypatch.setattr(train, "attempt", attempt)
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "set", 10)


EVALUATE = ["--mode", "evaluate", "--dataset", "set", "--num_seeds", "2"]


def stopped(capsys, *flags: str) -> str:
    with pytest.raises(SystemExit) as error:
        train.main([*flags])
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert error.value.code == 2 and len(message) == 1
    return message[0]


def test_the_pages_script_classifies_as_the_network_was_trained(quick, capsys):
    """Names of the classes, size, channels and range of grey are in every file that holds the network."""
    for i, file in enumerate(sorted(quick.rglob("*.png"))):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 16 + 500).resize((8 + i % 3, 9)).save(file)
    train.main([*EVALUATE, "--architecture", "k3f8p1-k3f8p1", "--eval_epochs", "60", "--num_seeds", "1"])
    result = json.loads(Path("runs/set/evaluation-k3f8p1-k3f8p1.json").read_text())
    weights = torch.load("runs/set/best_child-k3f8p1-k3f8p1.pt", weights_only=True)
    data = datasets.evaluation_data("set", Path("data"))
    assert data.preparation.classes == CLASSES and data.preparation.grey_range[0] > 400
    for saved in (result, weights):
        assert [saved[name] for name in ("classes", "image_size", "channels", "grey_range")] == [
            *(list(value) if saved is result and isinstance(value, tuple) else value for value in data.preparation)
        ]

    (program,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "preparation.json" in block)
    assert inspect.getsource(prepare) in program
    Path("runs/set").rename("runs/pictures")
    Path("runs/pictures/best_child-k3f8p1-k3f8p1.pt2").rename("runs/pictures/best_child.pt2")
    Path("new").mkdir()
    pictures = sorted(quick.rglob("*.png"))
    for number, file in enumerate(pictures):
        (Path("new") / f"{number:02}.png").write_bytes(file.read_bytes())
    program += (
        "\nnp.savez('pixels.npz', *(prepare(Image.open(f), **preparation) for f in sorted(Path('new').iterdir())))"
    )
    command = [sys.executable, "-I", "-c", program]  # without this repository
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    answers = [line.split() for line in found.stdout.splitlines()]
    right = [name == file.parent.name for (_, name), file in zip(answers, pictures, strict=True)]
    assert sum(right) >= 27 and [file for file, _ in answers] == sorted(f.name for f in Path("new").iterdir())
    there = {pixels.numpy().tobytes() for part in (data.train, data.held_out) for pixels in part.pixels}
    assert {pixels.tobytes() for pixels in np.load("pixels.npz").values()} == there


def test_evaluate_shows_what_an_accuracy_hides(quick, capsys):
    for file in sorted((quick / "owl").iterdir())[3:]:
        file.unlink()
    train.main([*EVALUATE, "--architecture", "k3f8p1-k3f8p1", "--eval_epochs", "30"])
    result = json.loads(Path("runs/set/evaluation-k3f8p1-k3f8p1.json").read_text())
    assert result["classes"] == [*CLASSES] and len(result["recall"]) == 3
    images = np.array([2, 2, 1])  # of the test
    assert result["most_frequent_share"] == 0.4 and result["test_images_in_training"] == 0
    assert (images * result["recall"]).sum() / 5 == pytest.approx(result["top1_mean"])
    said = capsys.readouterr().out
    assert (
        "most frequent class 40.00% of the test images" in said
        and Path("runs/set/confusion-k3f8p1-k3f8p1.png").exists()
    )
    assert re.search(r"recall  +\w+ [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+%\n", said)


def test_recalls_are_those_of_each_class():
    pixels = torch.tensor([0, 0, 255, 255, 255], dtype=torch.uint8).view(5, 1, 1, 1)
    data = datasets.Data(None, datasets.Images(pixels, torch.tensor([0, 2, 2, 2, 2])), 3)

    def child(x):  # black is class 0, white is class 2
        return torch.stack([-x[:, 0, 0, 0], -2 + 0 * x[:, 0, 0, 0], x[:, 0, 0, 0]], 1)

    assert evaluation.confusion_matrix(child, data) == [[1, 0, 0], [0, 0, 0], [1, 0, 3]]
    sides = datasets.Images(
        torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).view(2, 1, 1, 2), torch.tensor([0, 2])
    )
    assert evaluation.confusion_matrix(child, data._replace(held_out=sides)) == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    grey = evaluation.confusion_matrix(child, data._replace(held_out=sides), both_sides=True)
    assert grey == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]  # the mean of black and white is a tie: the first of both


def test_confusions_are_drawn_with_any_names(tmp_path):
    names = ("a", "$x_$", "ü" * 40, utils.printable(os.fsdecode(b"caf\xe9")))
    figure = plots.plot_confusions(torch.arange(16).view(4, 4), names, "k3f8p0 on $5_$")
    figure.savefig(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 300


def test_what_cannot_be_printed_stops_nothing(quick, monkeypatch):
    (quick / "cat").rename(quick / "chaton né")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    train.main([*EVALUATE, "--architecture", "k3f8p1-k3f8p1", "--eval_epochs", "1"])
    output.flush()
    assert b"chaton n\\xe9" in output.buffer.getvalue() and b" \\xb1 " in output.buffer.getvalue()
    assert json.loads(Path("runs/set/evaluation-k3f8p1-k3f8p1.json").read_text())["classes"][0] == "chaton né"


def test_the_files_are_there_before_anything_is_printed(quick, monkeypatch):
    def refuse(text):
        if text.startswith("top1"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "print", refuse, raising=False)
    with pytest.raises(SystemExit):
        train.main([*EVALUATE, "--architecture", "k3f8p1-k3f8p1", "--eval_epochs", "1", "--references"])
    assert len([file for file in Path("runs/set").iterdir() if file.is_file()]) == 3  # the picture comes last


@pytest.mark.parametrize("module", ["plots", "torch.utils.tensorboard"])
def test_a_missing_package_is_noticed_before_the_first_child(quick, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert "requirements.txt" in stopped(capsys, "--dataset", "set", "--num_children", "2")
    assert not Path("runs").exists()


def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "train.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"importing\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(600) == 130 and program.stderr.read() == b""


def test_when_all_children_failed_the_remedy_is_said(quick, monkeypatch, capsys):
    failed = {"val_accuracy": 0.0, "parameters": 0, "flops": 0, "seconds": 0.0, "error": "layer 2 shrinks below 1x1"}
    monkeypatch.setattr(train, "attempt", lambda *_: failed)
    message = stopped(capsys, "--dataset", "set", "--num_children", "3")
    assert "all 3 children failed, the first with: layer 2 shrinks below 1x1; try a larger --image_size" in message
    assert not Path("runs/set/best.json").exists()


def test_a_folder_called_mnist_is_not_mnist(quick, capsys):
    quick.rename("MNIST")
    train.main(["--dataset", "./MNIST", "--num_children", "2"])
    before = {file: file.read_bytes() for file in Path("runs/mnist").iterdir()}
    message = stopped(capsys, "--mode", "evaluate", "--dataset", "MNIST")
    assert "runs/mnist holds a search on MNIST, images of your own, not on MNIST" in message
    assert {file: file.read_bytes() for file in Path("runs/mnist").iterdir()} == before


def test_a_tilde_is_the_home_folder(quick, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = train.parse_arguments(["--dataset=~/set", "--run_dir=~/run", "--data_dir=~/data"])
    assert (args.dataset, args.run_dir, args.data_dir) == (str(quick), tmp_path / "run", tmp_path / "data")


def test_the_run_folder_is_checked_before_pictures_are_read(quick, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "search_data", lambda *_: pytest.fail("pictures were read"))
    Path("file").touch()
    for run_dir in ("file", "file/below"):
        message = stopped(capsys, "--dataset", "set", "--run_dir", run_dir)
        assert f"can't write to {run_dir} (file: Not a directory): choose another --run_dir" in message


@pytest.mark.parametrize(
    "code, remedy", [(2, "restore it"), (17, "another path"), (20, "another path"), (28, "make room")]
)
def test_errors_of_the_system_have_a_path_and_a_remedy(code, remedy):
    line = utils.explain_or_raise(OSError(code, os.strerror(code)), Path("runs/set"))
    assert line.startswith(f"runs/set: {os.strerror(code)}: ") and remedy in line and "Errno" not in line
    assert utils.explain_or_raise(OSError(code, "x", "a b"), Path("runs/set")).startswith("a b: x: ")


def test_printed_commands_work_from_any_folder(quick, capsys):
    write(Path("pictures"), 5, size=20)
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert train.parse_arguments([]).data_dir.resolve() == ROOT / "data"  # the clone's MNIST
    train.main(["--dataset", "../pictures", "--num_children", "2", "--run_dir", "my run"])
    said = capsys.readouterr().out
    assert "tensorboard --logdir 'my run'" in said
    program, *flags = shlex.split(said.split("evaluate it with    python ")[1])
    assert Path(program).resolve() == ROOT / "train.py" and "--data_dir" not in flags
    train.main([*flags, "--eval_epochs", "1"])
    assert Path("my run/best_child.pt2").exists()
    assert re.search(r"noise               differences below [\d.]+ points between two networks are", said)
