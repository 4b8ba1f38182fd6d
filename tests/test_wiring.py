"""What the numbers mean: which images, seeds and settings reach a training, the controller and the update.

The program runs in this process; only the training of a network is replaced, by a function that notes its arguments.
"""

import argparse
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
import evaluation
import references
import report
import settings
import train
import utils
from controller import Controller
from datasets import Data, Images, Preparation
from evaluation import EVALUATION_RECIPE
from finals import Job
from model import (
    MIN_STEPS,
    PAPER_RECIPE,
    Child,
    FromPixels,
    ImpossibleNetwork,
    Recipe,
    TrainedChild,
    measure,
    normalize,
    size_or_none,
    summarize,
    training_steps,
)
from policy_gradient import PolicyGradient
from search_space import PaperSpace, SmallSpace, parse_architecture
from utils import InputError, child_seed, read_ledger
from workers import DIED, TaskFailed, _call

TEST_LABEL = 7


PREPARATION = Preparation(tuple("abcdefghij"), (28, 28), 1)


class InProcess:
    """In the place of `Workers`: jobs run at once, in this process."""

    made: list[tuple]

    def __init__(self, num_workers, shared=None, timeout=None, device="cpu"):
        self.num_workers, self.shared = num_workers, shared
        InProcess.made.append((num_workers, timeout, device))

    def submit(self, job, *args):
        future = Future()
        try:
            future.set_result(job(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def run(self, function, *args):
        return _call(lambda _: function(self.shared, *args), ())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def trainings(monkeypatch, tmp_path, undrawn) -> list[dict]:
    """What every training got; 60,000 training images labelled by their number, and 100 test images."""
    noted = []

    def load_images(name, data_dir, train):
        labels = torch.arange(60_000) if train else torch.full((100,), TEST_LABEL)
        return Images(torch.zeros(len(labels), 1, 28, 28, dtype=torch.uint8), labels), PREPARATION

    def train_child(architecture, data, recipe, seed, progress=None):
        noted.append({"text": str(architecture), "data": data, "recipe": recipe, "seed": seed})
        make = architecture if callable(architecture) else partial(Child, architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            child = make(tuple(data.train.pixels.shape[1:]), data.num_classes)
        accuracy = 0.5 + seed % 997 / 2000
        return TrainedChild(child, accuracy, accuracy + 0.001, 0.25)

    InProcess.made = []
    for module in (settings, evaluation):
        monkeypatch.setattr(module, "Workers", InProcess)
    for module in (train, evaluation):
        monkeypatch.setattr(module, "train_child", train_child)
    monkeypatch.setattr(references, "seconds_of_a_step", lambda network, *_: 2.0 if callable(network) else 1.0)
    monkeypatch.setattr(datasets, "load_images", load_images)
    monkeypatch.chdir(tmp_path)
    return noted


def rows_of(folder: str, file: str = "children.jsonl") -> list[dict]:
    rows, _ = read_ledger(Path(folder, file))
    return [rows[child] for child in sorted(rows)]


# --- images -------------------------------------------------------------------------------------------------------


def test_a_child_trains_on_its_images_and_its_reward_comes_from_the_held_out_ones(trainings):
    train.main(["--num_children", "20", "--run_dir", "run"])
    held_out = torch.arange(0, 60_000, 12)
    rest = torch.tensor(sorted(set(range(60_000)) - set(held_out.tolist())))
    assert len(trainings) == 20 + 2  # finalists
    for training in trainings:
        assert torch.equal(training["data"].held_out.labels, held_out)
        assert torch.equal(training["data"].train.labels, rest) and training["data"].num_classes == 10
    rows = rows_of("run")
    assert [row["architecture"] for row in rows] == [training["text"] for training in trainings[:20]]
    for row, training in zip(rows, trainings, strict=False):
        assert row["val_accuracy"] == row["reward"] == 0.5 + training["seed"] % 997 / 2000
        assert row["seconds"] == 0.25
        child = Child(parse_architecture(row["architecture"]), (1, 28, 28), 10)
        assert row["parameters"] == sum(p.numel() for p in child.parameters())
        assert row["flops"] == sum(layer.flops for layer in summarize(child))


def test_a_final_training_uses_all_training_images_and_is_measured_on_the_test_images(trainings, capsys):
    train.main(["--mode", "evaluate", "--architecture", "k3f8p0", "--num_seeds", "3", "--run_dir", "run"])
    for training in trainings:
        assert torch.equal(training["data"].train.labels, torch.arange(60_000))
        assert training["data"].held_out.labels.tolist() == [TEST_LABEL] * 100
        assert training["recipe"] == EVALUATION_RECIPE and training["text"] == "k3f8p0"
    result = json.loads(Path("run/evaluation-k3f8p0.json").read_text())
    accuracies = [0.5 + training["seed"] % 997 / 2000 for training in trainings]
    assert result["top1"] == accuracies and result["top1_mean"] == pytest.approx(sum(accuracies) / 3)
    assert result["top5"] == pytest.approx([accuracy + 0.001 for accuracy in accuracies])
    assert result["top1_std"] == pytest.approx(torch.tensor(accuracies, dtype=torch.float64).std().item())
    assert result["train_images"] == 60_000 and "n = 3" in capsys.readouterr().out


def test_a_deep_architecture_has_a_file_name(trainings):
    text = "c1x1f24s3x3-" + "-".join(f"c1x1f24i{'.'.join(str(j) for j in range(1, i))}" for i in range(2, 15))
    train.main(["--mode", "evaluate", "--architecture", text, "--num_seeds", "1", "--run_dir", "run"])
    (file,) = Path("run").glob("evaluation-*.json")
    assert len(text) > 255 and json.loads(file.read_text())["architecture"] == text


def test_train_images_are_the_first_ones_and_more_than_there_are_is_refused(trainings, capsys):
    train.main(["--num_children", "1", "--train_images", "500", "--run_dir", "run"])
    assert len(trainings[0]["data"].train.labels) == 500 and len(trainings[0]["data"].held_out.labels) == 5000
    evaluate = ["--mode", "evaluate", "--num_seeds", "1", "--run_dir", "run"]
    train.main([*evaluate, "--train_images", "700"])
    assert torch.equal(trainings[1]["data"].train.labels, torch.arange(700))
    for flags, there in ((["--run_dir", "other"], "55,000"), (evaluate, "60,000")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train.main([*flags, "--train_images", "60001"])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and there in error and len(error.strip().splitlines()) == 1
    assert not Path("other").exists()


# --- seeds --------------------------------------------------------------------------------------------------------


def test_no_two_trainings_of_an_architecture_share_a_seed(trainings):
    """Search, finalists and final trainings of two run seeds: all different, and known from the flags alone."""
    for seed in ("0", "1"):
        train.main(["--num_children", "30", "--seed", seed, "--run_dir", seed])
        train.main(["--mode", "evaluate", "--seed", seed, "--run_dir", seed])
    seeds = [(training["text"], training["seed"]) for training in trainings]
    assert len(seeds) == len(set(seeds)) == 2 * (30 + 3 + 4)
    assert all(s == child_seed(0, text) for text, s in seeds[:30])
    assert all(s == child_seed(0, text, "finalist") for text, s in seeds[30:33])
    assert all(s == child_seed(0, text, "final", i) for i, (text, s) in enumerate(seeds[33:37]))
    assert len({text for text, _ in seeds[33:37]}) == 1


# --- settings -----------------------------------------------------------------------------------------------------

UPDATE = {"children_per_update": 3, "update_lag": 2, "entropy_weight": 0.6, "baseline_decay": 0.25,
          "reward_scale": "none", "replay": 9, "seed": 4}  # fmt: skip


def test_every_flag_of_the_policy_gradient_and_the_controller_arrives(trainings, monkeypatch):
    made = []

    class Noted(PolicyGradient):
        def __post_init__(self):
            super().__post_init__()
            self.first_weights = {name: p.clone() for name, p in self.controller.state_dict().items()}
            made.append(self)

    monkeypatch.setattr(settings, "PolicyGradient", Noted)
    flags = [text for name, value in UPDATE.items() for text in (f"--{name}", str(value))]
    flags += ["--controller_lr", "0.5", "--hidden_size", "6", "--controller_layers", "3"]
    train.main([*flags, "--num_children", "2"])
    (search,) = made
    assert {name: getattr(search, name) for name in UPDATE} == UPDATE
    assert (search.lr, search.num_steps(1000)) == (0.5, None)
    assert (search.optimizer.defaults["lr"], search.optimizer.defaults["betas"]) == (0.5, (0.9, 0.999))
    torch.manual_seed(4)
    expected = Controller([3] * 6, ["kernel", "filters", "padding"] * 2, 6, 3)
    assert search.controller.num_choices == expected.num_choices and search.controller.names == expected.names
    assert all(torch.equal(p, search.first_weights[name]) for name, p in expected.state_dict().items())
    saved = torch.load("runs/mnist/controller.pt", weights_only=True)
    assert (saved["hidden_size"], saved["num_layers"], len(search.controller.cells)) == (6, 3, 3)
    assert all(torch.equal(p, saved["state_dict"][name]) for name, p in search.controller.state_dict().items())


def test_growing_depth_reaches_the_update(trainings):
    args = train.parse_arguments(["--layers_step", "1", "--layers_every", "10", "--num_children", "25"])
    steps = settings.update_settings(args)["num_steps"]
    assert [steps(children) for children in (0, 9, 10, 24)] == [6, 6, 9, 12]
    paper = train.parse_arguments(["--space", "paper", "--layers_step", "2", "--num_children", "1601"])
    assert [settings.update_settings(paper)["num_steps"](n) for n in (0, 1600)] == [8, 16]
    assert settings.make_space(paper) == PaperSpace(4) and settings.make_space(args) == SmallSpace(4)
    assert settings.make_space(train.parse_arguments(["--space", "paper", "--strides"])) == PaperSpace(2, strides=True)


@pytest.mark.parametrize(
    "flags, recipe",
    [
        ([], Recipe()),
        (["--child_epochs", "0.25"], Recipe(epochs=0.25)),
        (["--child_recipe", "paper"], PAPER_RECIPE),
        (["--child_recipe", "paper", "--child_epochs", "3"], replace(PAPER_RECIPE, epochs=3)),
    ],
)
def test_the_recipe_of_the_flags_reaches_the_children(trainings, flags, recipe):
    train.main([*flags, "--num_children", "2", "--workers", "3", "--child_timeout", "9"])
    assert all(training["recipe"] == recipe for training in trainings)
    assert InProcess.made == [(3, 9.0, "cpu")]
    config = json.loads(Path("runs/mnist/config.json").read_text())
    assert config["settings"]["recipe"]["epochs"] == recipe.epochs
    trainings.clear()
    train.main(["--mode", "evaluate", "--eval_epochs", "7", "--num_seeds", "1", *flags[: 2 * ("paper" in flags)]])
    recipe = PAPER_RECIPE if "paper" in flags else EVALUATION_RECIPE
    assert trainings[0]["recipe"] == replace(recipe, epochs=7, best_of=1)


@pytest.mark.parametrize(
    "dataset, flag, of_search, mirrored",
    [
        ("FashionMNIST", None, None, True), ("CIFAR10", None, None, True),
        ("MNIST", None, None, False), ("KMNIST", None, None, False), ("photos", None, None, False),
        ("photos", True, None, True), ("photos", None, True, True), ("photos", False, True, False),
        ("CIFAR10", False, None, False), ("FashionMNIST", None, False, False), ("MNIST", True, False, True),
    ],
)  # fmt: skip
def test_images_are_mirrored_where_a_flag_the_search_or_the_data_set_says_so(dataset, flag, of_search, mirrored):
    args = argparse.Namespace(child_recipe="fast", dataset=dataset, eval_epochs=8, mirror=flag, precision="float32")
    recipe = evaluation.final_recipe(args, {} if of_search is None else {"mirror": of_search}, None)
    assert recipe == replace(EVALUATION_RECIPE, flip=mirrored, best_of=1)
    assert evaluation.judged_from_both_sides(recipe) == mirrored


@pytest.mark.parametrize("flag, flip", [(None, True), (True, True), (False, False)])
def test_the_papers_recipe_mirrors_unless_a_flag_forbids_it(flag, flip):
    """It judges a network from one side."""
    args = argparse.Namespace(
        child_recipe="paper", dataset="MNIST", child_epochs=50, eval_epochs=50, mirror=flag, precision="bfloat16"
    )
    expected = replace(PAPER_RECIPE, flip=flip, precision="bfloat16")
    assert settings.child_recipe(args, None) == expected
    assert evaluation.final_recipe(args, {}, None) == replace(expected, best_of=1)
    assert not evaluation.judged_from_both_sides(expected)


def test_a_search_with_the_papers_recipe_keeps_its_mirror_for_evaluate(trainings):
    """Also where the flag is the data set's default, but not the recipe's."""
    train.main(["--child_recipe", "paper", "--mirror", "False", "--num_children", "1", "--run_dir", "run"])
    trainings.clear()
    train.main(["--mode", "evaluate", "--child_recipe", "paper", "--num_seeds", "1", "--run_dir", "run"])
    assert [training["recipe"].flip for training in trainings] == [False]


@pytest.mark.parametrize("recipe", [EVALUATION_RECIPE, replace(EVALUATION_RECIPE, flip=True), PAPER_RECIPE])
def test_a_network_trained_on_mirrored_images_is_judged_from_both_sides(monkeypatch, recipe):
    """Its accuracies, confusions and what is exported agree; the paper's networks are judged from one side."""
    torch.manual_seed(0)
    child = Child(parse_architecture("k3f8p0"), (1, 8, 8), 10).eval()
    torch.nn.init.normal_(child.classifier.weight)
    pixels = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8)
    images = Images(pixels, FromPixels(child)(pixels).argmax(1))  # all right from one side
    one_side = measure(child, images)
    child.eval()
    monkeypatch.setattr(evaluation, "train_child", lambda *_: TrainedChild(child, *one_side, 0.0))
    data = Data(images, images, 10, PREPARATION)
    job = Job(parse_architecture("k3f8p0"), recipe, 0, keep_weights=True)
    final = evaluation.final_child((data, torch.zeros(1, 2)), 0, job, "cpu")
    saved = torch.load(io.BytesIO(final["saved"]), weights_only=True)
    assert saved["both_sides"] == (recipe.flip and recipe != PAPER_RECIPE)
    right = torch.tensor(final["confusions"]).diag().sum().item() / 400
    assert final["top1"] == pytest.approx(right) and (final["top1"] != one_side[0]) == saved["both_sides"]
    with torch.no_grad():
        logits = FromPixels(child, saved["both_sides"])(images.pixels)
    assert final["top1"] == pytest.approx((logits.argmax(1) == images.labels).float().mean().item())


def test_the_gpu_reaches_the_children(trainings, monkeypatch):
    """Here a device whose tensors have shapes only. The test images are counted there, too."""
    counted_on = []

    def confusion_matrix(child, data, both_sides):
        counted_on.append(data.held_out.pixels.device.type)
        return torch.eye(10, dtype=torch.int64).tolist()

    monkeypatch.setattr(evaluation, "confusion_matrix", confusion_matrix)
    monkeypatch.setattr(utils, "choose_device", lambda use_cuda: "meta" if use_cuda else "cpu")
    for flags, device in (["--workers", "1"], "cpu"), (["--workers", "1", "--use_cuda", "--run_dir", "gpu"], "meta"):
        train.main([*flags, "--num_children", "2"])
        assert InProcess.made.pop() == (1, None, device)
        train.main([*flags, "--mode", "evaluate", "--num_seeds", "2"])
        parts = [part for _ in range(4) for part in trainings.pop()["data"][:2]]
        assert not trainings and {tensor.device.type for part in parts for tensor in part} == {device}
        assert {counted_on.pop(), counted_on.pop()} == {device}
    assert json.loads(Path("gpu/config.json").read_text())["settings"]["device"] == "meta"


def test_networks_that_nobody_searched_for_are_timed_on_the_gpu(monkeypatch):
    data = Data(*(Images(torch.zeros(2, 1, 1, 1), torch.zeros(2)) for _ in range(2)), 10)

    def train_child(network, data, recipe, seed):
        return TrainedChild(None, 0, 0, seconds=data.train.pixels.device.type)

    monkeypatch.setattr(references, "train_child", train_child)
    assert references.seconds_of_training(data, references.LENET, Recipe(), "meta") == "meta"


def test_paper_sets_what_the_paper_says_and_given_flags_win():
    """§3.2, §4.1: two layers of 35, Adam with lr 6e-4 and its usual betas, 8 children, cubed rewards, no bonus."""
    args = train.parse_arguments(["--paper"])
    assert (args.controller_layers, args.hidden_size, args.num_finalists) == (2, 35, 0)
    assert settings.update_settings(args) == {
        "children_per_update": 8, "update_lag": 0, "entropy_weight": 0.0, "baseline_decay": 0.5, "reward_scale": "none",
        "replay": 0, "seed": 0, "lr": 0.0006,
    }  # fmt: skip
    assert args.reward_exponent == 3 and train.reward({"val_accuracy": 0.5}, args.reward_exponent) == 0.125
    args = train.parse_arguments(["--update_lag", "99", "--paper", "True", "--hidden_size=64"])
    assert (args.update_lag, args.hidden_size, args.controller_layers) == (99, 64, 2)
    plain = train.parse_arguments(["--paper", "False"])
    assert (plain.controller_layers, plain.hidden_size, plain.replay) == (1, 64, 1000)


def test_random_search_never_learns(trainings):
    train.main(["--strategy", "random", "--num_children", "60"])
    saved = torch.load("runs/mnist-random/controller.pt", weights_only=True)
    assert all(not tensor.any() for tensor in saved["state_dict"].values())  # uniform, at the end too
    assert settings.update_settings(train.parse_arguments(["--strategy", "random"]))["lr"] == 0


def test_children_are_ranked_by_the_reward(trainings, monkeypatch):
    """Another reward, here one that prefers small networks, is a change of `reward` alone."""
    monkeypatch.setattr(train, "reward", lambda row, exponent: row["val_accuracy"] - len(row["architecture"]) / 100)
    monkeypatch.setattr(train, "attempt", lambda run, workers, architecture, seed: {
        "val_accuracy": 0.5 + len(architecture) / 200, "parameters": 1, "seconds": 0.0})  # fmt: skip
    train.main(["--num_children", "60", "--num_finalists", "0"])
    lengths = {len(row["architecture"]) for row in rows_of("runs/mnist")}
    assert len(json.loads(Path("runs/mnist/best.json").read_text())["architecture"]) == min(lengths) < max(lengths)


def test_an_exponent_that_changes_nothing_is_said(trainings, capsys):
    for flags, said in (([], False), (["--reward_exponent", "3"], True), (["--paper"], False)):
        train.main([*flags, "--num_children", "1", "--run_dir", f"run{len(flags)}{said}"])
        assert ("--reward_exponent changes no rank" in capsys.readouterr().out) == said


def test_workers_default_to_the_cores_and_to_four_on_a_gpu(monkeypatch):
    monkeypatch.setattr(utils, "usable_cores", lambda: 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train.parse_arguments([]).workers == 64
    assert train.parse_arguments(["--use_cuda", "True"]).workers == 4
    assert train.parse_arguments(["--use_cuda", "True", "--workers", "5"]).workers == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.parse_arguments(["--use_cuda", "True"]).workers == 64


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--architecture", "k3f8p0"], "argument --architecture: only --mode evaluate has it"),
        (["--eval_epochs=2"], "argument --eval_epochs: only --mode evaluate has it"),
        (["--mode", "generate", "--num_seeds", "2"], "argument --num_seeds: only --mode evaluate has it"),
        (["--mode", "evaluate", "--num_children", "9"], "argument --num_children: only --mode generate has it"),
        (["--mode", "evaluate", "--hidden_size", "9"], "argument --hidden_size: only --mode generate has it"),
        (["--train_images", "1"], "must be a whole number from 2"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(trainings, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        train.main(flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not trainings and not Path("runs").exists()


# --- what fails ---------------------------------------------------------------------------------------------------

SMALLEST = parse_architecture("k3f8p0")


@pytest.mark.parametrize(
    "error, message",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "20 GiB"),
        (ImpossibleNetwork("layer 3 shrinks"), "layer 3 shrinks"),
        (TaskFailed(DIED), "died 3 times"),
    ],
)
def test_a_child_that_cannot_be_trained_gets_reward_0_and_the_reason(trainings, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(train, "train_child", fail)
    with pytest.raises(SystemExit):  # all of them
        train.main(["--num_children", "3"])
    rows = rows_of("runs/mnist")
    assert [(row["reward"], row["val_accuracy"]) for row in rows] == [(0, 0)] * 3
    assert all(message in row["error"] for row in rows)


@pytest.mark.parametrize("error", [ValueError("a mistake in the program"), RuntimeError("shapes differ")])
def test_a_mistake_in_the_program_is_no_result(trainings, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(train, "train_child", fail)
    with pytest.raises(type(error), match=str(error)):
        train.main(["--num_children", "3"])
    assert rows_of("runs/mnist") == []


def test_a_finalist_whose_second_training_fails_keeps_its_first_accuracy(trainings, monkeypatch, capsys):
    original = train.attempt

    def attempt(*args):
        if len(trainings) == 30:  # the first finalist, the best of all
            trainings.append({})
            return {"val_accuracy": 0.0, "parameters": 0, "seconds": 0.1, "error": DIED}
        return original(*args)

    monkeypatch.setattr(train, "attempt", attempt)
    train.main(["--num_children", "30"])
    first = max(row["val_accuracy"] for row in rows_of("runs/mnist"))
    finalists = {row["child"]: row for row in rows_of("runs/mnist", "finalists.jsonl")}
    best = json.loads(Path("runs/mnist/best.json").read_text())
    (failed,) = (f for f in best["finalists"] if len(f["val_accuracies"]) == 1)
    assert failed["val_accuracies"] == [first] and "error" in finalists[failed["child"]]
    output = capsys.readouterr().out
    assert "30 trained, the best 3 twice (1 failed)" in output and " 0.00%" not in output


@pytest.mark.parametrize(
    "error, message",
    [
        (TaskFailed(DIED), DIED),
        (torch.AcceleratorError("CUDA error: out of memory\nand more"), "out of memory: CUDA error: out of memory;"),
    ],
)
def test_a_training_that_fails_in_evaluate_is_one_line(trainings, monkeypatch, capsys, error, message):
    def die(*_):
        raise error

    monkeypatch.setattr(evaluation, "train_child", die)
    with pytest.raises(SystemExit) as stopped:
        train.main(["--mode", "evaluate", "--architecture", "k3f8p0"])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py")]
    assert stopped.value.code == 2 and len(lines) == 1 and f"k3f8p0 can't be trained: {message}" in lines[0]
    assert not list(Path("runs").rglob("evaluation*"))


# --- the run folder -----------------------------------------------------------------------------------------------


def test_config_lists_every_run(trainings, monkeypatch):
    train.main(["--num_children", "3"])
    monkeypatch.setattr(
        utils, "environment", lambda _: {"versions": {"torch": "9.9"}, "git_commit": "abc", "machine": {}}
    )
    train.main(["--num_children", "5", "--workers", "7"])
    config = json.loads(Path("runs/mnist/config.json").read_text())
    assert config["num_children"] == config["flags"]["num_children"] == 5 and config["versions"]["torch"] == "9.9"
    first, second = config["runs"]
    assert (first["num_children"], second["num_children"], second["flags"]["workers"]) == (3, 5, 7)
    assert first["versions"]["torch"] == torch.__version__ and second["git_commit"] == "abc"
    assert first["machine"]["instruction_set"] and first["started"] <= second["started"]


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(trainings, capsys):
    with pytest.raises(SystemExit):
        train.main(["--num_children", "3", "--cluster", "127.0.0.1:1"])
    assert Path("runs/mnist/config.json").exists() and not rows_of("runs/mnist")
    train.main(["--num_children", "2", "--seed", "5"])
    assert len(rows_of("runs/mnist")) == 2
    assert json.loads(Path("runs/mnist/config.json").read_text())["settings"]["seed"] == 5


def test_too_little_shared_memory_is_one_line_with_a_remedy(trainings, monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(SystemExit) as stopped:
        train.main(["--num_children", "3"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "in Docker with --shm-size" in error


def test_input_errors_are_no_tracebacks(trainings, monkeypatch, capsys):
    def refuse(*_):
        raise InputError("no such thing")

    monkeypatch.setattr(datasets, "search_data", refuse)
    with pytest.raises(SystemExit) as stopped:
        train.main(["--num_children", "3"])
    assert stopped.value.code == 2 and capsys.readouterr().err == "train.py: no such thing\n"


# --- the reader's own images, limits, references ------------------------------------------------------------------


@pytest.fixture
def own(trainings, tmp_path) -> str:
    """An .npz file of 60 images of 12 x 12 pixels in 3 classes."""
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=np.arange(60) % 3)
    return "own.npz"


def test_trainings_on_own_images_are_never_too_short(trainings, own, capsys):
    train.main(["--dataset", own, "--num_children", "2"])
    train.main(["--mode", "evaluate", "--dataset", own])
    search, final = trainings[0], trainings[-1]
    assert training_steps(search["recipe"], len(search["data"].train.labels))[2] == MIN_STEPS
    assert training_steps(final["recipe"], len(final["data"].train.labels))[2] >= MIN_STEPS
    train.main(["--dataset", own, "--num_children", "2", "--child_epochs", "900", "--run_dir", "long"])
    assert trainings[-1]["recipe"].epochs == 900
    said = capsys.readouterr().out
    assert "of 12 validation images: steps of 8.33 points" in said and f"{MIN_STEPS} steps of 36 images" in said
    command = re.findall(r"evaluate it with    python \S+train.py (.*)", said)[-1]
    assert command == "--mode evaluate --dataset own.npz --run_dir long"
    train.main(command.split())
    assert trainings[-1]["recipe"].epochs == 900
    assert "are there already, and will be replaced" not in capsys.readouterr().out
    train.main([*command.split(), "--num_seeds", "1"])
    assert "evaluation.json and best_child.pt are there already, and will be replaced" in capsys.readouterr().out
    result = json.loads(Path("long/evaluation.json").read_text())
    assert "top1" in result and "top5" not in result  # of three classes


def test_the_command_of_the_report_repeats_what_it_needs(trainings, own, capsys):
    Path("data").mkdir()
    train.main(
        ["--dataset", own, "--image_size", "16", "--num_children", "2", "--data_dir", "data/", "--run_dir", "a b"]
    )
    command = re.findall(r"evaluate it with    python \S+train.py (.*)", capsys.readouterr().out)[-1]
    train.main(shlex.split(command))
    assert trainings[-1]["data"].train.pixels.shape[1:] == (1, 16, 16)
    train.main(["--mode", "evaluate", "--dataset", own, "--run_dir", "a b"])  # known from the search
    assert trainings[-1]["data"].train.pixels.shape[1:] == (1, 16, 16)


def test_other_images_under_the_same_name_are_another_search(trainings, own, capsys):
    train.main(["--dataset", own, "--num_children", "2"])
    found = dict(np.load(own))
    np.savez(own, **found | {"train_images": found["train_images"] + 1})
    with pytest.raises(SystemExit):
        train.main(["--dataset", own, "--num_children", "2"])
    assert "the images have changed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--mode", "evaluate", "--dataset", own])
    assert "has other images than the search" in capsys.readouterr().err
    train.main(["--mode", "evaluate", "--dataset", own, "--architecture", "k3f8p0-k3f8p0"])  # is of no search


def test_a_renamed_folder_of_the_same_images_goes_on(trainings, own):
    train.main(["--dataset", own, "--num_children", "2", "--run_dir", "run"])
    Path(own).rename("renamed.npz")
    train.main(["--dataset", "renamed.npz", "--num_children", "4", "--run_dir", "run"])
    assert len(trainings) == 4 == len(rows_of("run"))
    Path("renamed.npz").rename("again.npz")
    train.main(["--mode", "evaluate", "--dataset", "again.npz", "--run_dir", "run", "--num_seeds", "1"])
    assert json.loads(Path("run/evaluation.json").read_text())["dataset"] == "again"


def test_an_evaluation_replaces_only_its_own_files(trainings, capsys):
    flags = ["--mode", "evaluate", "--architecture", "k3f8p0", "--num_seeds", "1", "--run_dir", "run"]
    Path("run").mkdir()
    for name in ("confusion-k3f8p0.png", "best_child-k3f8p0.pt", "evaluation-k3f8p0.json"):
        Path("run", name).write_text("mine")
        with pytest.raises(SystemExit) as stopped:
            train.main(flags)
        assert stopped.value.code == 2 and f"{name}" in capsys.readouterr().err and not trainings
        assert Path("run", name).read_text() == "mine"
        Path("run", name).unlink()
    for _ in range(2):
        train.main(flags)


@pytest.mark.parametrize("mode", [["--num_children", "3"], ["--mode", "evaluate", "--architecture", "k3f8p0"]])
def test_a_file_that_cannot_be_written_costs_no_number(trainings, monkeypatch, capsys, mode):
    def fail(path, content):
        if path.suffix == ".pt":
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr(utils, "write_atomically", fail)
    with pytest.raises(SystemExit) as stopped:
        train.main([*mode, "--run_dir", "run"])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "the disk is full" in said.err.splitlines()[-1]
    assert ("best architecture" if "--num_children" in mode else "top1 test accuracy") in said.out


def test_a_picture_that_cannot_be_written_costs_no_accuracy(trainings, capsys):
    Path("run/confusion-k3f8p0.png").mkdir(parents=True)
    Path("run/evaluation-k3f8p0.json").write_text('{"architecture": "k3f8p0"}')
    with pytest.raises(SystemExit) as stopped:
        train.main(["--mode", "evaluate", "--architecture", "k3f8p0", "--num_seeds", "1", "--run_dir", "run"])
    said = capsys.readouterr()
    assert stopped.value.code == 1 and "top1 test accuracy" in said.out and "files  " in said.out
    assert "confusion-k3f8p0.png (" in said.err.splitlines()[-1]
    assert "top1" in json.loads(Path("run/evaluation-k3f8p0.json").read_text())


def test_networks_above_the_limits_are_not_trained(trainings, capsys):
    train.main(["--num_children", "10", "--max_parameters", "60000", "--max_flops", "2000000"])
    rows = rows_of("runs/mnist")
    assert len(rows) == 10 and all(row["parameters"] <= 60_000 and row["flops"] <= 2_000_000 for row in rows)
    assert re.search(r"above the limits    \d+ networks sampled, not trained", capsys.readouterr().out)
    assert Path("runs/mnist/front.png").exists()
    train.main(["--mode", "evaluate", "--references", "--num_seeds", "2"])
    texts = [training["text"] for training in trainings]
    result = json.loads(Path("runs/mnist/evaluation.json").read_text())
    lenet, largest, some, resnet, mobile = result["references"]
    assert lenet["architectures"] == ["k5f8p0-k5f16p0"]
    assert lenet["top1"] == [0.5 + training["seed"] % 997 / 2000 for training in trainings[-18:-16]]
    assert largest["architectures"] == texts[-16:-15] and len(largest["top1"]) == 2
    data = trainings[0]["data"]
    sizes = {text: size_or_none(parse_architecture(text), data) for text in some["architectures"]}
    assert len(sizes) == len(some["top1"]) == 10 and all(size["parameters"] <= 60_000 for size in sizes.values())
    assert some["architectures"] == texts[-14:-4] and "random networks" in capsys.readouterr().out
    assert texts[-4:] == ["resnet18"] * 2 + ["mobilenet_v3_small"] * 2 and resnet["parameters"] == 11_181_642
    assert lenet["epochs"] == some["epochs"] == EVALUATION_RECIPE.epochs
    assert resnet["epochs"] == mobile["epochs"] == EVALUATION_RECIPE.epochs / 2  # a step takes twice the time


def test_limits_that_nothing_meets_are_one_line(trainings, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--num_layers", "1", "--max_parameters", "100"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.strip().count("\n") == 1 and not trainings  # the bar's line, and this one
    assert "within the limits, the smallest have" in error and "raise --max_parameters" in error


def test_the_largest_network_is_that_of_an_enumeration():
    data = Data(Images(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.zeros(1)), None, 10)
    space, size = SmallSpace(), partial(size_or_none, data=data)
    every = [space.decode(actions) for actions in itertools.product(range(3), repeat=6)]
    best = max(size(network)["parameters"] for network in every)
    for seed in range(3):
        start = references.random_actions(space, lambda network: True, seed)
        assert len(set(start)) == 10 and size(references.largest(space, start, size))["parameters"] == best


def test_the_smallest_finalist_within_the_noise():
    some = enumerate([(0.9, 50), (0.89, 20), (0.8, 5), (0.95, 60)])  # the first is the best: the ranking says so
    finalists = [{"child": i, "val_accuracy": accuracy, "parameters": n} for i, (accuracy, n) in some]
    assert [report.smallest(finalists, noise)["child"] for noise in (0, 0.02, 0.2)] == [0, 1, 2]


def test_the_noise_is_that_of_a_training_or_of_the_images_whichever_is_larger():
    data = Data(None, Images(None, torch.zeros(98)), 2)
    images = (0.9 * 0.1 / 100) ** 0.5  # with one more right and one more wrong
    ranking = [{"val_accuracy": 89 / 98}, {"val_accuracy": 0.5}]
    assert report.noise_of_accuracy(ranking, data) == pytest.approx(images)
    pairs = [[0.8, 0.9], [0.5, 0.7], [0.6]]
    ranking = [{"val_accuracy": 89 / 98, "val_accuracies": pair} for pair in pairs]
    assert report.noise_of_accuracy(ranking, data) == pytest.approx(((0.01 + 0.04) / 2 / 2) ** 0.5)


@pytest.mark.parametrize(
    "text, extra_filters",
    [("k5f8p1-k3f16p0", 0), ("c3x5f24s2x3-c1x3f36s1x2i1-c3x3f24i1.2-c3x1f24", 0), ("c3x3f24m-c1x3f36-c3x1f24i1.2", 3)],
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 24)])
def test_an_exported_network_gives_the_same_logits(text, extra_filters, shape, tmp_path):
    """In a process that has torch alone, for any number of images; here of colour pictures from both sides."""
    torch.manual_seed(0)
    both_sides = shape[0] == 3
    child = Child(parse_architecture(text).widened(extra_filters), shape, 7)
    for norm in child.norms:
        torch.nn.init.normal_(norm.running_mean)
    saved = {"architecture": text, "image_shape": shape, "num_classes": 7, "state_dict": child.state_dict()}
    saved |= {"both_sides": both_sides, "extra_filters": extra_filters}
    (tmp_path / "best_child.pt2").write_bytes(evaluation.exported(utils.serialize(saved)))
    pixels = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    torch.save(pixels, tmp_path / "pixels.pt")
    program = """
import torch
network = torch.export.load("best_child.pt2").module()
pixels = torch.load("pixels.pt")
torch.save([network(pixels[:n]) for n in (1, 2, 5)], "logits.pt")
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, timeout=600)
    sides = [pixels, pixels[..., torch.arange(shape[2] - 1, -1, -1)]][: 1 + both_sides]
    with torch.no_grad():
        expected = torch.stack([child.eval()(normalize(side)) for side in sides]).mean(0)
        for logits in torch.load(tmp_path / "logits.pt"):
            torch.testing.assert_close(logits, expected[: len(logits)], rtol=0, atol=1e-4)
