"""What `--mode evaluate` keeps: no final training that has ended is lost, or repeated, or mixed with others."""

import json
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from test_wiring import own, trainings  # noqa: F401  (fixtures)

import datasets
import evaluation
import finals
import plots
import references
import train
import utils
from evaluation import EVALUATION_RECIPE, ProgressLine
from finals import Finals, Job
from references import ReadyMade
from search_space import PaperSpace, SmallSpace, parse_architecture
from settings import space_around

NETWORK = "k3f8p0-k3f8p0"
EVALUATE = ["--mode", "evaluate", "--architecture", NETWORK, "--run_dir", "run"]
RESULT, FOLDER = Path(f"run/evaluation-{NETWORK}.json"), Path(f"run/finals-{NETWORK}")


def result_of(run_dir: str, name: str = NETWORK) -> dict:
    """All that two evaluations must agree in."""
    result = json.loads(Path(run_dir, f"evaluation-{name}.json").read_text())
    saved = torch.load(Path(run_dir, f"best_child-{name}.pt"), weights_only=True)
    weights = {key: tensor.tolist() for key, tensor in saved.pop("state_dict").items()}
    return {key: value for key, value in result.items() if key != "seconds"} | saved | weights


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *flags: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train.main([*flags])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Without what takes seconds, and depends on the trainings alone."""
    monkeypatch.setattr(evaluation, "exported", lambda saved: b"")
    monkeypatch.setattr(plots, "plot_confusions", lambda *_: MagicMock())
    monkeypatch.setattr(ReadyMade, "__call__", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setattr(references, "largest", lambda space, *_: space.decode([2] * 6))


@pytest.fixture
def stop_after(monkeypatch):
    """Stop as Ctrl-C does, before result number n + 1 is kept."""
    original = Finals.keep_training

    def stop(n: int) -> None:
        left = iter(range(n))

        def keep_training(self, job, final):
            if next(left, None) is None:
                raise KeyboardInterrupt
            original(self, job, final)

        monkeypatch.setattr(Finals, "keep_training", keep_training)

    yield stop
    monkeypatch.setattr(Finals, "keep_training", original)


@pytest.fixture
def stopped_one(trainings, stop_after, capsys):  # noqa: F811
    """An evaluation of four trainings, of which two have ended."""
    stop_after(2)
    with pytest.raises(SystemExit) as stopped:
        train.main(EVALUATE)
    error = capsys.readouterr().err
    assert stopped.value.code == 130 and not RESULT.exists()
    assert error.endswith("train.py: stopped; the same command goes on from here\n")
    stop_after(1000)
    trainings.clear()


def test_an_evaluation_that_was_stopped_goes_on(stopped_one, trainings, capsys):  # noqa: F811
    train.main(EVALUATE)
    assert "2 of 4 trainings have ended before: taken from run/finals" in capsys.readouterr().out
    assert len(trainings) == 2
    train.main([*EVALUATE[:-1], "whole"])
    assert result_of("run") == result_of("whole") and len(trainings) == 2 + 4


@pytest.mark.parametrize("flags, said", [
    (["--eval_epochs", "2"], "epochs is 2.0 now, was 8"),
    (["--seed", "1"], "seed is 1 now, was 0"),
    (["--train_images", "500"], "train_images is 500 now, was None"),
    (["--dataset", "KMNIST"], "dataset is KMNIST now, was MNIST"),
    (["--child_recipe", "paper"], "shift is 4 now, was 1; flip is True now, was False"),
    (["--use_cuda"], "device is meta now, was cpu"),
])  # fmt: skip
def test_other_settings_than_those_of_a_stopped_one_are_named_and_nothing_is_touched(
    stopped_one, trainings, monkeypatch, capsys, flags, said  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(utils, "choose_device", lambda use_cuda: "meta" if use_cuda else "cpu")
    before = contents(Path("run"))
    message = refused(capsys, *EVALUATE, *flags)
    assert said in message and f"use the same flags to continue it, or delete {FOLDER}" in message
    assert contents(Path("run")) == before and not trainings


def test_other_images_are_other_settings(trainings, own, stop_after, capsys):  # noqa: F811
    stop_after(1)
    with pytest.raises(SystemExit):
        train.main([*EVALUATE, "--dataset", own])
    preparation = datasets.evaluation_data(own, Path()).preparation
    found = dict(np.load(own))
    np.savez(own, **found | {"train_images": found["train_images"] + 1})
    assert datasets.evaluation_data(own, Path()).preparation == preparation
    assert "with other settings (the images have changed)" in refused(capsys, *EVALUATE, "--dataset", own)


def test_other_names_of_classes_are_other_settings(trainings, monkeypatch):  # noqa: F811
    """They stand in the files of the network."""
    load = datasets.load_images

    def renamed(*args, **more):
        images, preparation = load(*args, **more)
        return images, preparation._replace(classes=("nought", *preparation.classes[1:]))

    train.main([*EVALUATE, "--num_seeds", "1"])
    monkeypatch.setattr(datasets, "load_images", renamed)
    train.main([*EVALUATE, "--num_seeds", "1"])
    assert len(trainings) == 2 and result_of("run")["classes"][0] == "nought"


def test_trainings_of_a_complete_evaluation_are_used_again(trainings, capsys):  # noqa: F811
    for flags, new in ((["--num_seeds", "2"], 2), (["--num_seeds", "5"], 3), (["--num_seeds", "3"], 0)):
        trainings.clear()
        train.main([*EVALUATE, *flags])
        assert len(trainings) == new and len(json.loads(RESULT.read_text())["top1"]) == int(flags[1])
    trainings.clear()
    train.main([*EVALUATE, "--num_seeds", "3", "--references"])
    assert len(trainings) == 3 + 3 + 10 + 3 + 3 and all(training["text"] != NETWORK for training in trainings[:6])
    train.main([*EVALUATE[:-1], "whole", "--num_seeds", "3", "--references"])
    assert result_of("run") == result_of("whole")


def test_a_complete_evaluation_is_replaced_by_one_with_other_settings(trainings, stop_after, capsys):  # noqa: F811
    train.main([*EVALUATE, "--num_seeds", "2"])
    before = contents(Path("run"))
    stop_after(0)
    with pytest.raises(SystemExit):
        train.main([*EVALUATE, "--eval_epochs", "2"])
    assert contents(Path("run")) == before  # nothing new has ended
    stop_after(1)
    with pytest.raises(SystemExit):
        train.main([*EVALUATE, "--eval_epochs", "2"])
    assert len(list(FOLDER.glob("final-*.json"))) == 1 and RESULT.read_bytes() == before[RESULT]
    assert "epochs is 8 now, was 2.0" in refused(capsys, *EVALUATE)  # now that one was stopped
    stop_after(1000)
    train.main([*EVALUATE, "--eval_epochs", "2"])
    assert "are there already, and will be replaced" in capsys.readouterr().out
    assert json.loads(RESULT.read_text())["recipe"]["epochs"] == 2
    trainings.clear()
    train.main([*EVALUATE, "--num_seeds", "2"])
    assert len(trainings) == 2 and json.loads(RESULT.read_text())["recipe"] == json.loads(
        json.dumps(finals.asdict(EVALUATION_RECIPE))
    )


def test_trainings_on_other_images_are_not_used_again(trainings):  # noqa: F811
    """Seed and recipe are the same."""
    train.main([*EVALUATE, "--num_seeds", "2"])
    train.main([*EVALUATE, "--num_seeds", "2", "--train_images", "500"])
    assert [len(training["data"].train.labels) for training in trainings] == [60_000] * 2 + [500] * 2
    assert len(list(FOLDER.glob("final-*.json"))) == 2


def test_references_go_on_with_the_times_that_were_measured(trainings, stop_after, monkeypatch):  # noqa: F811
    """A step takes other seconds in the second run: the trainings get the epochs of the first one all the same."""
    flags = ["--num_seeds", "2", "--references"]
    train.main([*EVALUATE[:-1], "whole", *flags])
    stop_after(2 + 17)
    with pytest.raises(SystemExit):
        train.main([*EVALUATE, *flags])
    monkeypatch.setattr(references, "seconds_of_a_step", lambda network, *_: 9.0 if callable(network) else 1.0)
    stop_after(1000)
    trainings.clear()
    train.main([*EVALUATE, *flags])
    assert [training["text"] for training in trainings] == ["mobilenet_v3_small"]
    assert result_of("run") == result_of("whole")
    (FOLDER / f"final-{references.STEPS}.json").unlink()  # then they are measured anew, and other trainings follow
    train.main([*EVALUATE, *flags])
    assert [training["text"] for training in trainings[1:]] == ["resnet18"] * 2 + ["mobilenet_v3_small"] * 2
    assert {training["recipe"].epochs for training in trainings[1:]} == {EVALUATION_RECIPE.epochs / 9}


def test_two_evaluations_never_share_a_folder(trainings, capsys):  # noqa: F811
    with utils.lock(FOLDER, "evaluation"):
        assert f"another evaluation is running in {FOLDER}: wait for it" in refused(capsys, *EVALUATE)
        train.main([*EVALUATE[:2], "--architecture", "k3f8p0", *EVALUATE[4:]])  # has a folder of its own
    train.main(EVALUATE)


def test_a_full_disk_is_one_line_and_what_has_ended_stays(trainings, monkeypatch, capsys):  # noqa: F811
    write_bytes = Path.write_bytes

    def until_full(file, content):
        if len(list(FOLDER.glob("final-*.json"))) == 2:
            write_bytes(file, content[:5])
            raise OSError(28, "No space left on device")
        write_bytes(file, content)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    assert "the disk is full, make room and give the same command again" in refused(capsys, *EVALUATE)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    (FOLDER / ".final-5.json.123").write_bytes(b"torn")  # of a run that was killed
    trainings.clear()
    train.main(EVALUATE)
    assert len(trainings) == 2 and not list(FOLDER.glob(".final*"))


@pytest.mark.parametrize("file, content, said", [
    ("settings.json", b"[]", f"delete {FOLDER}, only its trainings are lost"),
    ("final-*.json", b"x", "delete it, only this training is lost"),
])  # fmt: skip
def test_damage_is_named(trainings, capsys, file, content, said):  # noqa: F811
    train.main([*EVALUATE, "--num_seeds", "1"])
    (path,) = FOLDER.glob(file)
    path.write_bytes(content)
    message = refused(capsys, *EVALUATE, "--num_seeds", "1")
    assert str(path) in message and said in message


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_training_without_its_weights_is_repeated(trainings, damage):  # noqa: F811
    train.main([*EVALUATE, "--num_seeds", "3"])
    before = result_of("run")
    (weights,) = FOLDER.glob("*.pt")  # of the first seed only
    damage(weights)
    trainings.clear()
    train.main([*EVALUATE, "--num_seeds", "3"])
    assert len(trainings) == 1 and result_of("run") == before


def test_the_time_is_that_of_all_runs(trainings, stop_after, monkeypatch):  # noqa: F811
    """On a clock that moves ten seconds with each training that ends."""
    now = 0.0
    original = Finals.keep_training

    def keep_training(self, job, final):
        nonlocal now
        now += 10
        original(self, job, final)

    for module in (evaluation, finals):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(Finals, "keep_training", keep_training)
    for num_seeds in (2, 5):
        train.main([*EVALUATE, "--num_seeds", str(num_seeds)])
        assert json.loads(RESULT.read_text())["seconds"] == 10 * num_seeds
    monkeypatch.setattr(references, "largest", lambda *_: parse_architecture(NETWORK))  # trained already: not counted
    train.main([*EVALUATE, "--num_seeds", "5", "--references"])
    assert json.loads(RESULT.read_text())["seconds"] == 10 * (5 + 5 + 10 + 5 + 5)


def test_trainings_keep_where_they_ran(trainings, monkeypatch):  # noqa: F811
    """An evaluation that is given again, or goes on elsewhere, names the machines that made its numbers."""
    for machine, num_seeds in (("first", "1"), ("second", "1"), ("second", "3")):
        monkeypatch.setattr(utils, "environment", lambda device, machine=machine: {"machine": machine})
        train.main([*EVALUATE, "--num_seeds", num_seeds])
        result = json.loads(RESULT.read_text())
        assert result["machine"] == "first"
        assert result["other_environments"] == ([{"machine": "second"}] if num_seeds == "3" else [])


def test_settings_that_cannot_be_written_mix_no_trainings(trainings, monkeypatch, capsys):  # noqa: F811
    """Nothing is kept beside the settings of other trainings."""
    train.main([*EVALUATE, "--num_seeds", "2"])
    write_settings = Finals.write_settings

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Finals, "write_settings", full)
    assert "the disk is full" in refused(capsys, *EVALUATE, "--num_seeds", "2", "--train_images", "500")
    monkeypatch.setattr(Finals, "write_settings", write_settings)
    trainings.clear()
    train.main([*EVALUATE, "--num_seeds", "2"])
    assert len(trainings) == 2


# --- the progress line --------------------------------------------------------------------------------------------


def test_the_progress_line_says_when_the_last_training_ends():
    """Five trainings, one of them from before, on two processes: four are left, two after two."""
    jobs, images = [Job(parse_architecture(NETWORK), EVALUATION_RECIPE, seed) for seed in range(5)], 8 * 640
    progress = torch.zeros(5, 2, dtype=torch.float64)
    with ProgressLine(jobs, [{}, None, None, None, None], 650, 2) as line:
        assert (line.total, line.initial) == (3 * images, images)
        progress[1], progress[2] = torch.tensor([images / 2, 0.832]), torch.tensor([images / 2, 0.5])
        line.show(progress, [1, 2, 3, 4])
        assert line.n == 1.5 * images
        text = line.format_meter(**line.format_dict | {"elapsed": 100})
        assert "50%" in text and "01:40 passed, 05:00 left, training accuracy 83.2%" in text
        progress[1:3, 0], progress[3, 0] = images, images / 4
        line.show(progress, [3, 4])
        assert line.n == 2 * images  # the other one has not begun
        line.show(progress, [])
        assert line.n == line.total


# --- the space of the references ----------------------------------------------------------------------------------


def test_the_space_around_a_network_is_that_of_its_search():
    small, plain = parse_architecture("k3f8p0-k3f8p0-k3f8p0"), parse_architecture("c3x3f24-c1x1f24i1")
    strided = parse_architecture("c3x3f24s2x2")
    searched = {"space": "paper", "strides": True}
    assert space_around(small, {}) == space_around(small, searched) == SmallSpace(3)
    assert space_around(plain, {}) == PaperSpace(2) and space_around(plain, searched) == PaperSpace(2, strides=True)
    assert space_around(strided, {}) == PaperSpace(1, strides=True)
    assert space_around(strided, {"space": "small", "strides": False}) == PaperSpace(1, strides=True)
    assert space_around(parse_architecture("c3x3f24m-c1x1f24mi1-c1x1f24i2"), {}) == PaperSpace(3, pooling=2)
    assert space_around(plain, searched | {"pooling": 2}) == PaperSpace(2, strides=True)  # it has no room for two


def test_a_widened_network_has_files_of_its_own(trainings):  # noqa: F811
    """Its text and seeds are those of the network that it was made from, which may be among the references."""
    flags = ["--num_seeds", "1", "--references", "--extra_filters", "3"]
    largest = "k7f32p2-k7f32p2"
    evaluate = ["--mode", "evaluate", "--architecture", largest, "--run_dir", "run", *flags]
    train.main(evaluate)
    assert [training["text"] for training in trainings].count(largest) == 2
    trainings.clear()
    train.main(evaluate)
    assert not trainings
