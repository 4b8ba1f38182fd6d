"""CIFAR-10 as a folder of pictures, mirrored photographs, poolings and more filters: through the program's flags."""

import json
import math
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_wiring import InProcess

import datasets
import evaluation
import settings
import train
import utils
from benchmarks import cifar10, cifar10_rewards
from datasets import CIFAR10_CLASSES
from search_space import parse_architecture


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A data folder with cifar10/{train,test}/<class>/*.png: six pictures a class to train on, two for the test."""
    random, data_dir = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for part, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(CIFAR10_CLASSES):
            folder = data_dir / "cifar10" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (32, 32, 3), np.uint8)
                pixels[3 * label : 3 * label + 3] += 180
                Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    return data_dir


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Networks are trained for real, but without worker processes and `torch.export`, which take seconds."""
    monkeypatch.setattr(evaluation, "exported", lambda saved: b"")
    InProcess.made = []
    for module in (settings, evaluation):
        monkeypatch.setattr(module, "Workers", InProcess)


def run(*flags: object) -> None:
    train.main([*map(str, flags), "--workers", "1", "--train_images", "40"])


def refused(capsys, *flags: object) -> str:
    """The one line that the program ends with, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and line.startswith("train.py: ")
    return line


EVALUATE = ("--mode", "evaluate", "--architecture", "k3f8p0-k3f8p0", "--num_seeds", 1, "--eval_epochs", 2)


def weights(folder: Path, suffix: str = "") -> dict:
    return torch.load(folder / f"best_child-k3f8p0-k3f8p0{suffix}.pt", weights_only=True)


def test_mirrored_photographs_of_ones_own_train_as_cifar10_does(pictures, tmp_path):
    run("--dataset", "CIFAR10", "--data_dir", pictures, "--run_dir", tmp_path / "built_in", *EVALUATE)
    run("--dataset", pictures / "cifar10", "--mirror", "True", "--run_dir", tmp_path / "own", *EVALUATE)
    run("--dataset", pictures / "cifar10", "--run_dir", tmp_path / "as_letters", *EVALUATE)
    built_in, own, as_letters = (weights(tmp_path / name) for name in ("built_in", "own", "as_letters"))
    assert built_in["classes"] == own["classes"] == CIFAR10_CLASSES
    assert built_in["both_sides"] and own["both_sides"] and not as_letters["both_sides"]
    for name, tensor in built_in["state_dict"].items():
        assert torch.equal(tensor, own["state_dict"][name])
    assert not torch.equal(built_in["state_dict"]["convs.0.weight"], as_letters["state_dict"]["convs.0.weight"])


def test_a_search_on_ones_own_photographs_is_that_on_cifar10(pictures, tmp_path):
    """With the same length of a training, which is at least 300 steps on the reader's own images."""
    search = ("--num_children", 2, "--num_finalists", 0, "--child_epochs", 1)
    run("--dataset", "CIFAR10", "--data_dir", pictures, "--run_dir", tmp_path / "built_in", *search)
    run("--dataset", pictures / "cifar10", "--mirror", "True", "--run_dir", tmp_path / "own", *search)
    rows = [utils.read_ledger(tmp_path / name / "children.jsonl")[0] for name in ("built_in", "own")]
    built_in, own = ([row | {"seconds": 0} for row in found.values()] for found in rows)
    assert len(own) == 2 and built_in == own


def test_a_search_on_a_folder_of_cifar10_goes_on_and_keeps_its_mirror(pictures, tmp_path, capsys):
    search = ("--dataset", "CIFAR10", "--data_dir", pictures, "--run_dir", tmp_path, "--child_epochs", 1)
    run(*search, "--num_children", 1)
    kept = json.loads((tmp_path / "config.json").read_text())["settings"]
    assert kept["images"] and "mirror" not in kept  # the data set's default
    before = (tmp_path / "children.jsonl").read_bytes()
    assert "mirror is False now, was the default" in refused(capsys, *search, "--num_children", 2, "--mirror", "False")
    assert "precision is bfloat16 now" in refused(capsys, *search, "--num_children", 2, "--precision", "bfloat16")
    assert (tmp_path / "children.jsonl").read_bytes() == before
    run(*search, "--num_children", 2, "--mirror", "True")
    assert (tmp_path / "children.jsonl").read_bytes().startswith(before)


def test_poolings_and_more_filters_through_the_flags(pictures, tmp_path):
    common = ("--dataset", "CIFAR10", "--data_dir", pictures, "--run_dir", tmp_path)
    space = ("--space", "paper", "--num_layers", 3, "--pooling", 2, "--max_flops", 10_000_000)
    run(*common, *space, "--child_epochs", 1, "--num_children", 1)
    text = json.loads((tmp_path / "best.json").read_text())["architecture"]
    architecture = parse_architecture(text)
    assert [layer.pool for layer in architecture.layers] == [True, True, False]
    evaluate = ("--mode", "evaluate", "--num_seeds", 1, "--eval_epochs", 1, "--precision", "bfloat16")
    run(*common, *evaluate)
    run(*common, *evaluate, "--extra_filters", 5)
    plain, wider = (json.loads((tmp_path / f"evaluation{suffix}.json").read_text()) for suffix in
                    ("", "-5_more_filters"))  # fmt: skip
    assert plain["architecture"] == wider["architecture"] == text
    assert plain["extra_filters"] == 0 and wider["extra_filters"] == 5
    assert plain["recipe"]["precision"] == "bfloat16"
    saved = torch.load(tmp_path / "best_child-5_more_filters.pt", weights_only=True)
    filters = [saved["state_dict"][f"convs.{i}.weight"].shape[0] for i in range(3)]
    assert filters == [layer.filters + 5 for layer in architecture.layers]
    assert wider["parameters"] == sum(
        tensor.numel() for name, tensor in saved["state_dict"].items() if "running" not in name and "num_b" not in name
    )

    page = (utils.ROOT / "docs" / "own_data.md").read_text()
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_state_dict" in block)
    program = program.replace("runs/mnist/best_child.pt", f"{tmp_path}/best_child-5_more_filters.pt")
    found: dict = {}
    exec(program.replace("1, 1, 28, 28", "1, 3, 32, 32"), found)
    assert found["logits"].shape == (1, 10)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--pooling", "1"], "argument --pooling: only --space paper has it"),
        (["--space", "paper", "--pooling", "2"], "argument --pooling: networks of 2 layers have room for 1"),
        (["--space", "paper", "--num_layers", "5", "--pooling", "3"], "images of 28 x 28 allow 2 at most"),
        (["--extra_filters", "3"], "argument --extra_filters: only --mode evaluate has it"),
        (["--mirror", "perhaps"], "argument --mirror: must be True or False, not 'perhaps'"),
        (["--precision", "half"], "argument --precision: invalid choice: 'half'"),
    ],
)
def test_flags_that_contradict_themselves_are_one_line(flags, reason, tmp_path, capsys):
    assert reason in refused(capsys, *flags, "--run_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_cifar10_is_one_line(pictures, tmp_path, capsys):
    def copy(keep) -> Path:
        """A data folder with those pictures for which `keep` gives a size."""
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in sorted((pictures / "cifar10").rglob("*.png")):
            if size := keep(*file.parts[-3:-1]):
                there = folder / file.relative_to(pictures)
                there.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(file) as picture:
                    picture.resize(size).save(there)
        return folder

    cases = {
        "has no folder train": lambda part, name: (32, 32) if part == "test" else None,
        "has no folder test": lambda part, name: (32, 32) if part == "train" else None,
        "truck: it needs": lambda part, name: (32, 32) if name != "frog" else None,
        "test has no picture of frog": lambda part, name: (32, 32) if (part, name) != ("test", "frog") else None,
        "pictures of 32 x 31": lambda part, name: (32, 31),
        "32 x 31 pixels, most pictures have 32 x 32": lambda part, name: (32, 31 if name == "frog" else 32),
    }
    for reason, keep in cases.items():
        line = refused(capsys, "--dataset", "CIFAR10", "--data_dir", copy(keep), "--run_dir", tmp_path / "run")
        assert reason in line, line
        assert not (tmp_path / "run").exists()


def test_without_pictures_and_archive_the_line_names_both(tmp_path, monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(
        datasets.InputError, match=r"put cifar-10-python\.tar\.gz into .*, or its pictures into .*/cifar10/"
    ):
        datasets.search_data("CIFAR10", tmp_path)


def test_a_torn_archive_beside_the_pictures_is_named(pictures, tmp_path, monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise RuntimeError("no network")

    (tmp_path / "cifar10").symlink_to(pictures / "cifar10")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"torn")
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(datasets.InputError, match=r"remove cifar-10-python\.tar\.gz .* to use the pictures in"):
        datasets.search_data("CIFAR10", tmp_path)


def test_the_pictures_do_not_continue_a_search_on_the_archive(pictures, tmp_path, capsys):
    common = ("--dataset", "CIFAR10", "--data_dir", pictures, "--run_dir", tmp_path / "run")
    run(*common, "--child_epochs", 1, "--num_children", 1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["settings"]["images"] = None  # as after a search on the archive
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    line = refused(capsys, *common, "--mode", "evaluate")
    assert f"holds a search on the archive of CIFAR10, and it is not what {pictures} has now: use --data_dir" in line


def test_the_archive_wins_over_the_pictures(pictures, tmp_path):
    (tmp_path / "cifar10").symlink_to(pictures / "cifar10")
    assert datasets.path_of_pictures("CIFAR10", tmp_path) == tmp_path / "cifar10"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert datasets.path_of_pictures("CIFAR10", tmp_path) is None


# --- the experiment -----------------------------------------------------------------------------------------------


def write_search(folder: Path, accuracies: Sequence[float], flops: Sequence[int] | None = None) -> None:
    """The ledger and the settings of a search; its networks take 1,000 operations an image if nothing is said."""
    folder.mkdir()
    with (folder / "children.jsonl").open("w") as ledger:
        for child in reversed(range(len(accuracies))):
            row = {
                "child": child,
                "update": 0,
                "actions": [],
                "architecture": "",
                "seed": 0,
                "val_accuracy": accuracies[child],
                "reward": 0.0,
                "parameters": 1,
                "flops": flops[child] if flops else 1000,
                "seconds": 1.0,
            }
            ledger.write(json.dumps(row) + "\n")
    settings = {"train_images": None, "recipe": {"epochs": 0.2}, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))


def test_the_lead_over_random_search_by_hand(tmp_path):
    """The best so far, and the mean of the best five; the shorter search of a pair counts."""
    write_search(tmp_path / "a", [0.1, 0.5, 0.3, 0.7])
    write_search(tmp_path / "a-random", [0.2, 0.2, 0.4, 0.4, 0.9])
    write_search(tmp_path / "a-seed1", [0.3, 0.3, 0.3, 0.3])
    write_search(tmp_path / "a-random-seed1", [0.1, 0.1, 0.1, 0.5])
    found = cifar10.compare_searches(tmp_path, "a", (0, 1, 2))
    assert found["children"] == 4
    np.testing.assert_allclose(found["lead_of_best"]["1"], [[-0.1, 0.3, 0.1, 0.3], [0.2, 0.2, 0.2, -0.2]])
    means = np.array([0.1, 0.3, 0.3, 0.4]) - [0.2, 0.2, 0.8 / 3, 0.3]
    np.testing.assert_allclose(found["lead_of_best"]["5"][0], means)
    np.testing.assert_allclose(found["last_quarter"], [[0.7, 0.4], [0.3, 0.5]])
    assert cifar10.draw_lead(found).axes[0].get_legend() is not None
    assert cifar10.compare_searches(tmp_path, "b", (0,)) == {}
    assert cifar10.quarters(np.arange(9.0)) == (0.5, 7.5)


def test_the_lead_at_equal_size_is_nothing_where_size_explains_all(tmp_path):
    """Accuracies are a parabola in the logarithm of the FLOPs: the larger networks are ahead by size alone."""

    def accuracy(flops: int) -> float:
        return 0.1 + 0.05 * math.log(flops) - 0.001 * math.log(flops) ** 2

    small, large = [1000, 2000, 3000, 4000], [4000, 5000, 6000, 7000]
    write_search(tmp_path / "a-random", [accuracy(n) for n in small], small)
    write_search(tmp_path / "a", [accuracy(n) for n in large], large)
    assert cifar10.compare_searches(tmp_path, "a", (0,))["last_quarter"][0][0] > accuracy(4000) + 0.01
    assert cifar10.leads_at_equal_size(tmp_path, "a", (0,)) == pytest.approx([0], abs=1e-9)

    write_search(tmp_path / "b-random", [accuracy(n) for n in small], small)
    write_search(tmp_path / "b", [accuracy(n) + 0.03 for n in small], small)
    assert cifar10.leads_at_equal_size(tmp_path, "b", (0,)) == pytest.approx([0.03])


def test_the_summary_of_an_experiment_tells_of_what_there_is(tmp_path):
    """A search that has not begun and final trainings that have not been run are left out."""
    cifar10.write_summary("cpu", tmp_path)
    assert not list(tmp_path.iterdir())
    write_search(tmp_path / "cifar10-paper", [0.5, 0.6])
    write_search(tmp_path / "cifar10-paper-random", [0.5, 0.5])
    cifar10.write_summary("cpu", tmp_path)
    assert (tmp_path / "cifar10-paper.png").exists()
    summary = json.loads((tmp_path / "cifar10-paper.json").read_text())
    assert list(summary["runs"]) == ["cifar10-paper", "cifar10-paper-random"]
    assert summary["runs"]["cifar10-paper"]["search"]["trainings"] == 2
    assert summary["runs"]["cifar10-paper"]["finals"] == []
    assert summary["lead_of_best"]["1"] == [[0, pytest.approx(0.1)]]


@pytest.mark.parametrize("machine, searches", [("cpu", 7), ("gpu", 2)])
def test_each_step_is_a_command_that_the_program_takes(machine, searches, tmp_path):
    folders = []
    for command in cifar10.steps(machine, tmp_path):
        args = train.parse_arguments(command)
        assert args.dataset == "CIFAR10" and args.run_dir.parent == tmp_path
        short = train.parse_arguments(cifar10.shortened(command))
        assert short.train_images == 500 and short.run_dir == args.run_dir
        if args.mode == "generate":
            folders.append(args.run_dir)
            args.run_dir.mkdir()
            (args.run_dir / "best.json").write_text('{"architecture": "c3x3f36-c5x1f48i1"}')  # as if it had ended
        else:
            assert args.run_dir in folders
    assert len(set(folders)) == len(folders) == searches
    assert (str(args.architecture) == "c3x3f36-c5x1f48i1") == (machine == "cpu")  # the last step: short trainings


def test_a_step_is_interrupted_when_the_time_is_over(tmp_path, monkeypatch):
    """Also where SIGINT is ignored, as in the background of a script."""
    (tmp_path / "train.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(cifar10, "ROOT", tmp_path)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started = time.monotonic()
        assert not cifar10.run([], time.monotonic() + 0.5)
        assert time.monotonic() - started < 50
    finally:
        signal.signal(signal.SIGINT, ignored)


def test_a_step_that_fails_ends_the_experiment(capfd):
    with pytest.raises(datasets.InputError, match="exit code 2"):
        cifar10.run(["--num_children", "0"], float("inf"))
    assert "$ python train.py --num_children 0" in capfd.readouterr().out


def test_what_a_search_and_final_trainings_cost_by_hand(tmp_path):
    where = tmp_path / "search"
    write_search(where, [0.5, 0.6])
    rows = (where / "children.jsonl").read_text().splitlines(keepends=True)
    second = json.loads(rows[0])
    (where / "finalists.jsonl").write_text(json.dumps(second | {"seconds": 34.0}) + "\n" + '{"torn')
    impossible = second | {"child": 2, "val_accuracy": 0.0, "seconds": 5.0, "flops": 0, "error": "vanishes"}
    (where / "children.jsonl").write_text("".join(rows) + json.dumps(impossible) + "\n")
    cost = cifar10.cost_of_search(where)
    assert cost == {"trainings": 3, "core_hours": 36 / 3600, "flops": 3 * 3 * 9000 * 1000}
    assert cifar10.flops_of(where).tolist() == [1000, 1000]

    config = (where / "config.json").read_text()
    (where / "config.json").write_text(config.replace("cpu", "cuda"))
    (where / "time.json").write_text('{"wall": 720}')
    assert cifar10.cost_of_search(where) == {"trainings": 3, "gpu_hours": 0.2, "flops": cost["flops"]}

    result = {"architecture": "c3x3f36m-c5x1f48i1", "extra_filters": 40, "parameters": 7, "seconds": 60.0}
    result |= {"top1": [0.9, 0.92], "top1_mean": 0.91, "top1_std": 0.01, "flops": 1000, "train_images": 50_000}
    for another in ("", "-40_more_filters"):
        (where / f"evaluation-c3x3f36-c5x1f48i1{another}.json").write_text("{}")  # of another network
    (where / "evaluation-40_more_filters.json").write_text(json.dumps(result | {"recipe": {"epochs": 40.0}}))
    (row,) = cifar10.summarize_finals(where)
    assert row["layers"] == 2 and row["n"] == 2 and row["test_error"] == pytest.approx(0.09)
    assert row["flops"] == 2 * 3 * 1000 * 50_000 * 40


def test_a_reward_is_judged_by_the_trainings_that_there_are():
    """A recipe with a single training of each network counts; without a judge nothing is said."""
    networks = [f"network {number}" for number in range(10)]
    right = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    two_exchanged = [0.2, 0.1, *right[2:]]
    rows = {}
    for name, seed, accuracies in (
        ("9,000 images", 0, right),
        ("9,000 images", 1, right),
        ("18,000 images", 0, two_exchanged),
        ("45,000 images", 0, right[:-1]),  # one network is missing
    ):
        for network, accuracy in zip(networks, accuracies, strict=False):
            rows[name, network, seed] = {"val_accuracy": accuracy, "test_accuracy": accuracy, "seconds": 1.0}
    assert cifar10_rewards.summarize(rows, networks)["recipes"] == {}

    for network in networks:
        rows["judge", network, 0] = rows["9,000 images", network, 0]
    assert cifar10_rewards.summarize(rows, networks)["recipes"] == {}  # its only training begins with the same weights

    for network in networks:
        rows["judge", network, 1] = rows["9,000 images", network, 1]
    found = cifar10_rewards.summarize(rows, networks)
    assert found["judge"]["accuracy"] == pytest.approx(0.55) and found["judge"]["noise"] == 0
    assert list(found["recipes"]) == ["9,000 images", "18,000 images"]
    best, worse = found["recipes"].values()
    assert best["trainings"] == 2 and best["is_best"]
    assert best["correlation"] == pytest.approx(1)
    assert worse["trainings"] == 1 and not worse["is_best"]
    assert worse["correlation"] == pytest.approx(1 - 6 * 2 / 990)  # Spearman's formula
    assert worse["below_best_ci"][1] > 0


def test_a_reward_is_judged_by_another_seed_and_on_other_images():
    """Worked out by hand: Spearman's correlation is 1 - 12/990 where two neighbours of ten are exchanged."""
    networks = [f"network {number}" for number in range(10)]
    right = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    two_exchanged, reversed_order = [0.2, 0.1, *right[2:]], right[::-1]
    rows = {}
    for name, seed, val, test in (
        ("9,000 images", 0, right, right),
        ("judge", 0, reversed_order, reversed_order),  # it begins with the weights of the reward
        ("judge", 1, right, two_exchanged),
    ):
        for i, network in enumerate(networks):
            rows[name, network, seed] = {"val_accuracy": val[i], "test_accuracy": test[i], "seconds": 1.0}
    (found,) = cifar10_rewards.summarize(rows, networks)["recipes"].values()
    assert found["correlation"] == pytest.approx(1 - 6 / 990)  # the mean of 1 and 1 - 12/990
    low, high = found["correlation_ci"]
    assert low < found["correlation"] < high <= 1 and found["below_best_ci"] == [0, 0]


def test_what_a_recipe_is_worth_in_equal_time_by_hand():
    """The expected maxima of one, two and three normal numbers are 0, 1/√π and 1.5/√π."""
    for n, expected in ((1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))):
        assert cifar10_rewards.expected_maximum(n) == pytest.approx(expected, abs=1e-3)
    assert cifar10_rewards.expected_maximum(120) == pytest.approx(2.57, abs=0.01)  # from a table of order statistics
