"""The program as its users meet it: the command line, the run folder, real MNIST."""

import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

import datasets
import plots
import train
from controller import Controller
from evaluation import choose_architecture
from model import Child
from search_space import PaperSpace, SmallSpace, parse_architecture
from utils import VERSION, child_seed, read_ledger

ROOT = Path(__file__).parent.parent
SMALL = ["--train_images", "300", "--num_children", "4", "--children_per_update", "2"]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run train.py in another folder, as a user would."""
    flags = [sys.executable, str(ROOT / "train.py"), *arguments, "--data_dir", str(ROOT / "data")]
    return subprocess.run(flags, cwd=cwd, capture_output=True, text=True, timeout=600)


def rows_without_seconds(run_dir: Path) -> list[dict]:
    rows, _ = read_ledger(run_dir / "children.jsonl")
    return [{key: value for key, value in rows[child].items() if key != "seconds"} for child in sorted(rows)]


@pytest.fixture
def stand_in(monkeypatch, tmp_path, undrawn):
    """Run the program in this process with a fast function in the place of a child's training; counts its calls."""
    calls = []

    def attempt(run, workers, architecture, seed):
        calls.append(architecture)
        if stop_after is not None and len(calls) > stop_after:
            raise KeyboardInterrupt
        accuracy = 0.9 + (child_seed(seed, architecture) % 997) / 10_000
        return {"val_accuracy": accuracy, "parameters": 5, "seconds": 0.001}

    stop_after = None
    monkeypatch.setattr(train, "attempt", attempt)
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, stop: int | None = None) -> list[str]:
        nonlocal stop_after
        stop_after = stop
        calls.clear()
        train.main(["--data_dir", str(ROOT / "data"), *flags])
        return list(calls)

    return run


# --- real children ------------------------------------------------------------------------------------------------


@pytest.fixture
def on_few_images(monkeypatch, tmp_path):
    """Run the program in this process on a part of MNIST: measuring on all its images would take most of the time."""
    load_images = datasets.load_images

    def load_few(name, data_dir, train):
        images, preparation = load_images(name, data_dir, train)
        return images.take(slice(3000 if train else 500)), preparation

    monkeypatch.setattr(datasets, "load_images", load_few)
    monkeypatch.chdir(tmp_path)
    return lambda *flags: train.main([*flags, "--data_dir", str(ROOT / "data"), "--workers", "1"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[Path, str]:
    """A search of the command line on all of MNIST: the folder it was started in, and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    result = command("--mode", "generate", *SMALL, "--workers", "2", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.mark.xdist_group("searched")
def test_search_and_evaluation_end_to_end(searched, on_few_images, monkeypatch, capsys):
    folder, said = searched
    monkeypatch.chdir(folder)
    run_dir = folder / "runs" / "mnist"
    files = {path.name for path in run_dir.iterdir()}
    assert {"config.json", "children.jsonl", "controller.pt", "best.json", "search.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)

    rows = rows_without_seconds(run_dir)
    assert [row["child"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert str(SmallSpace().decode(row["actions"])) == row["architecture"]
        assert row["seed"] == child_seed(0, row["architecture"])
        assert 0.1 < row["val_accuracy"] <= 1 and row["reward"] == row["val_accuracy"]
        child = Child(parse_architecture(row["architecture"]), (1, 28, 28), 10)
        assert row["parameters"] == sum(p.numel() for p in child.parameters())
    best = json.loads((run_dir / "best.json").read_text())
    assert best["val_accuracy"] == max(row["val_accuracy"] for row in rows)
    for text in (best["architecture"], "4 trained (0 failed)", "workers training", "--mode evaluate"):
        assert text in said

    flags = ("--use_cuda", "True", "--train_images", "300", "--eval_epochs", "1", "--num_seeds", "2")
    on_few_images("--mode", "evaluate", *flags)
    said = capsys.readouterr().out
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["architecture"] == best["architecture"]
    assert len(evaluation["top1"]) == len(evaluation["top5"]) == 2
    assert evaluation["top1_mean"] == pytest.approx(sum(evaluation["top1"]) / 2)
    assert all(0.1 < one < five <= 1 for one, five in zip(evaluation["top1"], evaluation["top5"], strict=True))
    if not torch.cuda.is_available():
        assert said.count("CUDA is not available") == 1
    for text in ("top1 test accuracy", "top5 test accuracy", "± ", "parameters"):
        assert text in said

    text = "".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    others = ("onnx", "nas-bench-macro", "preparation.json", "optuna")  # need other packages or files
    blocks = [block for block in blocks if not any(other in block for other in others)]
    assert len(blocks) == 8
    (folder / "data").symlink_to(ROOT / "data")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", "\n".join(blocks)]
    result = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "update 4: mean reward" in result.stdout and "mean reward 1" in result.stdout  # README's; REINFORCE's, > 10
    assert (folder / "digits" / "7" / "0.png").exists()  # as the page of own data says


def draw_shapes(root: Path, n: int) -> None:
    """Colour pictures of 20 x 20 pixels: a circle, a square or a triangle somewhere on noise, `n` of each."""
    draws = {
        "circle": lambda draw, x, y, r, fill: draw.ellipse((x - r, y - r, x + r, y + r), fill),
        "square": lambda draw, x, y, r, fill: draw.rectangle((x - r, y - r, x + r, y + r), fill),
        "triangle": lambda draw, x, y, r, fill: draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill),
    }
    rng = np.random.default_rng(0)
    for name, draw in draws.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            image = Image.fromarray(rng.integers(0, 120, (20, 20, 3), dtype=np.uint8))
            x, y, r = map(int, rng.integers((7, 7, 4), (13, 13, 7)))
            draw(ImageDraw.Draw(image), x, y, r, tuple(map(int, rng.integers(100, 256, 3))))
            image.save(root / name / f"{i}.png")


def test_own_pictures_end_to_end(tmp_path):
    draw_shapes(tmp_path / "my shapes", n=100)
    short = ("--num_children", "2", "--child_epochs", "60", "--workers", "1")
    searched = command("--dataset", "my shapes", *short, cwd=tmp_path)
    assert searched.returncode == 0, searched.stderr
    assert (
        "3 classes (circle, square, triangle), images of 20 x 20 RGB pixels, 168 to train on, 72 for validation, 60 for"
        in searched.stdout
    )
    run_dir = tmp_path / "runs" / "my shapes"
    accuracies = [row["val_accuracy"] for row in rows_without_seconds(run_dir)]
    assert min(accuracies) > 0.5  # chance is a third
    suggested = shlex.split(searched.stdout.split("evaluate it with")[1])[2:]
    evaluated = command(*suggested, "--num_seeds", "1", "--eval_epochs", "70", cwd=tmp_path)
    assert evaluated.returncode == 0 and "top5" not in evaluated.stdout, evaluated.stderr
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["top1_mean"] >= sum(accuracies) / 2  # longer trained than in the search, on more images

    network = torch.export.load(run_dir / "best_child.pt2").module()
    files = [tmp_path / "my shapes" / name / f"{i}.png" for name in ("circle", "square", "triangle") for i in range(3)]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))  # (N, H, W, C)
    answers = network(pixels.permute(0, 3, 1, 2)).argmax(1).tolist()
    right = [a == b for a, b in zip(answers, [0] * 3 + [1] * 3 + [2] * 3, strict=True)]
    assert sum(right) >= 7


@pytest.mark.xdist_group("searched")
def test_one_and_two_workers_give_the_same_ledger(searched, tmp_path):
    train.main([*SMALL, "--workers", "1", "--run_dir", str(tmp_path), "--data_dir", str(ROOT / "data")])
    with_two = searched[0] / "runs" / "mnist"
    assert rows_without_seconds(tmp_path) == rows_without_seconds(with_two)
    assert (tmp_path / "best.json").read_bytes() == (with_two / "best.json").read_bytes()


def test_the_papers_space_and_recipe_end_to_end(on_few_images, tmp_path):
    flags = ["--space", "paper", "--strides", "True", "--child_recipe", "paper", "--child_epochs", "2"]
    flags += [*SMALL[:2], "--num_children", "2", "--reward_exponent", "3"]
    on_few_images(*flags, "--run_dir", "run")
    rows = rows_without_seconds(tmp_path / "run")
    space = PaperSpace(2, strides=True)
    for row in rows:
        assert str(space.decode(row["actions"])) == row["architecture"] and len(row["actions"]) == 11
        assert row["val_accuracy"] > 0 and row["reward"] == row["val_accuracy"] ** 3
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["recipe"]["optimizer"] == "sgd" and settings["recipe"]["epochs"] == 2
    assert {"search.png", "best.png"} <= {path.name for path in (tmp_path / "run").iterdir()}

    flags = ["--architecture", "c3x1f24s3x2-c1x3f36s2x3i1", "--train_images", "300", "--eval_epochs", "1"]
    on_few_images("--mode", "evaluate", "--child_recipe", "paper", "--num_seeds", "1", *flags)
    evaluation = json.loads((tmp_path / "runs/mnist/evaluation-c3x1f24s3x2-c1x3f36s2x3i1.json").read_text())
    assert evaluation["recipe"]["optimizer"] == "sgd" and evaluation["recipe"]["epochs"] == 1
    assert evaluation["recipe"]["best_of"] == 1  # the test set chooses no epoch
    assert evaluation["parameters"] == 3 * 24 + 2 * 24 + 3 * 24 * 36 + 2 * 36 + 36 * 10 + 10


# --- the search with a stand-in -----------------------------------------------------------------------------------


def test_a_stopped_search_ends_as_an_uninterrupted_one(stand_in, capsys):
    whole = stand_in("--num_children", "40", "--run_dir", "whole")
    with pytest.raises(SystemExit) as stopped:
        stand_in("--num_children", "40", "--run_dir", "parts", stop=17)
    assert stopped.value.code == 130 and "the same command" in capsys.readouterr().err
    done = {row["architecture"] for row in rows_without_seconds(Path("parts"))}
    assert 0 < len(done) < 40
    rest = stand_in("--num_children", "40", "--run_dir", "parts")
    assert len(done) + len(rest) == 44 and sorted([*done, *rest]) == sorted(whole)  # nothing was trained again
    assert rows_without_seconds(Path("parts")) == rows_without_seconds(Path("whole"))
    assert Path("parts/best.json").read_bytes() == Path("whole/best.json").read_bytes()
    states = [torch.load(Path(run, "controller.pt"), weights_only=True)["state_dict"] for run in ("parts", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_complete_search_prints_its_report_again_and_a_larger_budget_goes_on(stand_in, capsys):
    stand_in("--num_children", "20")
    report = capsys.readouterr().out.splitlines()[1:]
    assert stand_in("--num_children", "20") == []
    assert capsys.readouterr().out.splitlines()[1:] == report
    assert len(stand_in("--num_children", "30")) in (11, 12, 13)  # ten children, and the finalists that are new
    assert "30 trained, the best 3 twice" in capsys.readouterr().out


def test_finalists_are_trained_once_more_and_one_network_is_the_best_everywhere(stand_in, monkeypatch, capsys):
    """Chosen by the rank of its mean accuracy and by what the policy estimates: recomputed from the files."""
    drawn = {}
    monkeypatch.setattr(plots, "plot_search", lambda rows, best, *_: drawn.update(search=best) or Figure())
    monkeypatch.setattr(
        plots, "plot_front", lambda rows, best, *_: drawn.update(front=best, rows=list(rows)) or Figure()
    )
    calls = stand_in("--num_children", "60", "--num_finalists", "4")
    rows = rows_without_seconds(Path("runs/mnist"))
    first = {row["architecture"]: row["val_accuracy"] for row in rows}

    saved = torch.load("runs/mnist/controller.pt", weights_only=True)
    controller = Controller(saved["num_choices"], saved["names"])
    controller.load_state_dict(saved["state_dict"])
    log_prob = controller(torch.tensor([row["actions"] for row in rows])).log_prob.sum(1).tolist()
    ranks = [rank_of(accuracy, first.values()) for accuracy in first.values()]
    tau = 0.7 * statistics.pstdev(ranks) / math.log(729)
    weight = 60 / (4 * 6 * 3)
    estimate = {text: weight * tau * lp for text, lp in zip(first, log_prob, strict=True)}

    def ranking(accuracies: dict) -> list[str]:
        return sorted(accuracies, key=lambda text: -rank_of(accuracies[text], first.values()) - estimate[text])

    finalists = ranking(first)[:4]
    assert len(rows) == 60 and calls[60:] == finalists != sorted(first, key=first.get, reverse=True)[:4]
    second = {text: 0.9 + child_seed(child_seed(0, text, "finalist"), text) % 997 / 10_000 for text in finalists}
    means = {text: (first[text] + second[text]) / 2 for text in finalists}
    best = json.loads(Path("runs/mnist/best.json").read_text())
    assert best["architecture"] == ranking(means)[0] and best["val_accuracy"] == means[best["architecture"]]
    assert {f["architecture"]: f["val_accuracies"] for f in best["finalists"]} == {
        text: [first[text], second[text]] for text in finalists
    }
    rule = f"highest sum of the accuracy's rank and {weight:.2f} times the policy's estimate of it"
    assert best["chosen_by"] == f"{rule}, of 60 children, and of two trainings of the first 4"
    assert drawn["search"] == drawn["front"] and drawn["front"]["architecture"] == best["architecture"]
    assert {row["architecture"]: row["val_accuracy"] for row in drawn["rows"]} == first | means
    report = capsys.readouterr().out
    assert f"chosen by           the {rule}, a weight that grows with the children\n" in report
    assert f"best architecture   {best['architecture']}" in report and f"  1. {best['architecture']}" in report
    assert "60 trained, the best 4 twice (0 failed)" in report
    noise = statistics.fmean((first[text] - second[text]) ** 2 / 2 for text in finalists) ** 0.5
    assert f"differences below {200 * noise:.2f} points between two networks are not significant" in report
    good = [text for text in finalists if means[text] >= best["val_accuracy"] - noise]  # all are of the same size here
    assert f"smallest as good    {min(good, key=list(first).index)}" in report
    assert stand_in("--num_children", "60", "--num_finalists", "4") == []
    assert len(stand_in("--num_children", "60", "--num_finalists", "6")) == 2
    assert rows_without_seconds(Path("runs/mnist")) == rows


def rank_of(accuracy: float, children: Collection[float]) -> float:
    """How many more are below than above, as a share of all."""
    return (sum(child < accuracy for child in children) - sum(child > accuracy for child in children)) / len(children)


def test_one_finalist_is_none(stand_in):
    assert len(stand_in("--num_children", "19")) == 19  # nothing to choose from
    assert len(stand_in("--num_children", "20")) == 1 + 2


def test_a_search_stopped_among_its_finalists_goes_on_there(stand_in):
    flags = ["--num_children", "40", "--num_finalists", "4", "--workers", "1"]
    stand_in(*flags, "--run_dir", "whole")
    with pytest.raises(SystemExit):
        stand_in(*flags, "--run_dir", "parts", stop=42)
    assert not Path("parts/best.json").exists()
    before = json.loads(Path("parts/time.json").read_text())["wall"]
    assert len(stand_in(*flags, "--run_dir", "parts")) == 2
    after = json.loads(Path("parts/time.json").read_text())["wall"]
    assert after > before  # the time of finalists counts, and that of a complete search that prints its report does not
    assert stand_in(*flags, "--run_dir", "parts") == []
    assert json.loads(Path("parts/time.json").read_text())["wall"] == after
    assert Path("parts/best.json").read_bytes() == Path("whole/best.json").read_bytes()


@pytest.mark.parametrize("space", [["--space", "small"], ["--space", "paper", "--strides", "True"]])
def test_depth_grows_and_a_larger_budget_goes_on_there(stand_in, space):
    """§4.1: two layers at first, one more every ten children; the weights, and so the walk, are carried over."""
    flags = [*space, "--layers_step", "1", "--layers_every", "10", "--num_finalists", "0"]
    stand_in(*flags, "--num_children", "35", "--run_dir", "whole")
    rows = rows_without_seconds(Path("whole"))
    first_of = {}
    for row in rows:
        known = first_of.setdefault(row["update"], row["child"])  # children when its batch was sampled
        assert len(parse_architecture(row["architecture"]).layers) == 2 + known // 10
    assert {len(parse_architecture(row["architecture"]).layers) for row in rows} == {2, 3, 4, 5}
    for budget in ("12", "35"):
        stand_in(*flags, "--num_children", budget, "--run_dir", "parts")
    assert rows_without_seconds(Path("parts")) == rows
    saved = torch.load("whole/controller.pt", weights_only=True)
    assert len(saved["num_choices"]) == 5 * len(
        (PaperSpace(1, True) if "--strides" in space else SmallSpace(1)).decisions
    )


def test_random_search_is_uniform_and_goes_to_its_own_folder(stand_in):
    stand_in("--strategy", "random", "--num_children", "200")
    rows = rows_without_seconds(Path("runs/mnist-random"))
    assert len(rows) == 200
    for step in range(6):
        shares = [sum(row["actions"][step] == choice for row in rows) / 200 for choice in range(3)]
        assert all(abs(share - 1 / 3) < 0.12 for share in shares)
    updates = [row["update"] for row in rows]
    assert updates == sorted(updates) and 99 <= updates[-1] < 110  # two new children an update, or nearly


def test_the_search_learns_to_prefer_better_children(stand_in, monkeypatch):
    def accuracy(run, workers, architecture, seed):
        score = sum(layer.filters for layer in parse_architecture(architecture).layers) / 64
        return {"val_accuracy": 0.9 + 0.05 * score, "parameters": 5, "seconds": 0.001}

    monkeypatch.setattr(train, "attempt", accuracy)
    rewards = {}
    for strategy in ("reinforce", "random"):
        means = []
        for seed in range(3):
            stand_in(
                "--strategy", strategy, "--seed", str(seed), "--num_children", "80", "--run_dir", f"{strategy}{seed}"
            )
            rows = rows_without_seconds(Path(f"{strategy}{seed}"))
            means.append(sum(row["reward"] for row in rows[40:]) / 40)
        rewards[strategy] = means
    assert min(rewards["reinforce"]) > max(rewards["random"])


def test_evaluate_takes_the_best_of_an_unfinished_search_and_says_so(stand_in, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        stand_in("--num_children", "40", stop=17)
    rows = rows_without_seconds(Path("runs/mnist"))
    best = max(rows, key=lambda row: row["val_accuracy"])["architecture"]
    again = rows[-1] | {"child": 39, "architecture": "k3f8p0", "reward": max(row["reward"] for row in rows)}
    ledger = Path("runs/mnist/children.jsonl")
    ledger.write_text(f"{json.dumps(again | {'seconds': 1.0})}\n{ledger.read_text()}")  # as good, but later
    rows.append(again)
    args = train.parse_arguments(["--mode", "evaluate"])
    capsys.readouterr()
    assert str(choose_architecture(args)[0]) == best
    assert f"is not finished: best of {len(rows)} children" in capsys.readouterr().out


@pytest.mark.parametrize("best", ["[]", "x", '{"children": 12}', '{"children": 12, "architecture": 5}', "\\xff"])
def test_nonsense_in_best_json_is_one_line(stand_in, capsys, best):
    stand_in("--num_children", "12")
    Path("runs/mnist/best.json").write_bytes(best.encode().decode("unicode_escape").encode("latin1"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        stand_in("--mode", "evaluate")
    assert stopped.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("file", ["children.jsonl", "finalists.jsonl"])
def test_a_row_of_no_child_of_this_search_stops_it(stand_in, capsys, file):
    stand_in("--num_children", "20")
    path = Path("runs/mnist", file)
    row = json.loads(path.read_text().splitlines()[0]) | {"child": 500}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    before = {path: path.read_bytes() for path in Path("runs/mnist").iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        stand_in("--num_children", "20")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and f"{file}: child 500" in error and len(error.strip().splitlines()) == 1
    assert before == {path: path.read_bytes() for path in Path("runs/mnist").iterdir()}


def test_other_flags_in_a_run_folder_are_named_and_nothing_is_touched(stand_in, capsys):
    stand_in("--num_children", "10")
    capsys.readouterr()
    files = {path: path.read_bytes() for path in Path("runs/mnist").iterdir()}
    for flags in (["--seed", "1"], ["--entropy_weight", "0.2"], ["--train_images", "9"], ["--child_epochs", "2"]):
        with pytest.raises(SystemExit) as stopped:
            stand_in("--num_children", "10", *flags)
        assert stopped.value.code == 2
        message = capsys.readouterr().err.strip()
        assert flags[0][2:] in message and len(message.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path("runs/mnist").iterdir()} == files


def test_a_search_of_1_1_0_goes_on_and_samples_the_same(stand_in):
    """The committed search was made with version 1.1.0."""
    kept = ROOT / "results" / "mnist"
    Path("runs/mnist").mkdir(parents=True)
    for name in ("config.json", "children.jsonl"):
        shutil.copy(kept / name, Path("runs/mnist", name))
    assert json.loads((kept / "config.json").read_text())["settings"]["version"] == "1.1.0"
    assert len(stand_in("--num_children", "81", "--num_finalists", "0")) == 1
    assert rows_without_seconds(Path("runs/mnist"))[:80] == rows_without_seconds(kept)
    config = json.loads(Path("runs/mnist/config.json").read_text())
    assert config["settings"]["version"] == "1.1.0" and config["versions"]["program"] == VERSION


def test_a_search_of_1_0_0_is_named_and_nothing_is_touched(stand_in, capsys):
    """Its walk and its children were other ones."""
    stand_in("--num_children", "4")
    config = Path("runs/mnist/config.json")
    content = json.loads(config.read_text())
    del content["settings"]["version"]  # 1.0.0 wrote none
    config.write_text(json.dumps(content))
    capsys.readouterr()
    files = {path: path.read_bytes() for path in Path("runs/mnist").iterdir()}
    with pytest.raises(SystemExit) as stopped:
        stand_in("--num_children", "4")
    message = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and len(message.splitlines()) == 1
    assert f"a search of version 1.0 of this program, which version {VERSION} can't continue" in message
    assert {path: path.read_bytes() for path in Path("runs/mnist").iterdir()} == files


def test_files_of_others_are_neither_replaced_nor_deleted(stand_in, capsys):
    run_dir = Path("runs/mnist")
    run_dir.mkdir(parents=True)
    events = run_dir / "events.out.tfevents.123.of.others"
    events.write_bytes(b"loss of another program")
    for name in ("search.png", "time.json", "children.jsonl"):
        (run_dir / name).write_text("mine")
        with pytest.raises(SystemExit) as stopped:
            stand_in("--num_children", "2")
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and f"runs/mnist has {name}, which" in error
        assert (run_dir / name).read_text() == "mine"
        (run_dir / name).unlink()
    assert len(stand_in("--num_children", "2")) == 2  # nothing but events
    ours = set(run_dir.glob("events.out.tfevents.*")) - {events}
    stand_in("--num_children", "4")
    assert events.read_bytes() == b"loss of another program"
    assert len(ours) == 1 and not ours & set(run_dir.glob("events.out.tfevents.*"))  # written anew


def test_a_picture_that_cannot_be_written_costs_no_number(stand_in, capsys):
    stand_in("--num_children", "2")
    run_dir = Path("runs/mnist")
    for name in ("search.png", "front.png"):
        (run_dir / name).unlink()
    (run_dir / "search.png").mkdir()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        stand_in("--num_children", "3")
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("train.py")]
    assert stopped.value.code == 1 and len(lines) == 1 and "search.png (" in lines[0] and "front" not in lines[0]
    assert "best architecture" in said.out and (run_dir / "front.png").exists()
    assert json.loads((run_dir / "best.json").read_text())["children"] == 3


def test_the_time_of_a_search_without_its_clock_is_unknown(stand_in, capsys):
    stand_in("--num_children", "2")
    Path("runs/mnist/time.json").unlink()
    stand_in("--num_children", "3")
    assert "time                unknown, because runs/mnist/time.json was deleted" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--num_layers", "8"], ["--num_layers", "39", "--strides"]], ids=" ".join)
def test_deep_spaces_are_searched_and_resumed(stand_in, monkeypatch, flags):
    """Of 4^24 sequences and more, which no integer type holds."""
    monkeypatch.setattr(plots, "plot_search", lambda *_: Figure())  # takes longer than the search
    flags = ["--space", "paper", *flags, "--num_finalists", "0"]
    whole = stand_in(*flags, "--num_children", "5", "--update_lag", "0", "--run_dir", "whole")
    first = stand_in(*flags, "--num_children", "2", "--update_lag", "0", "--run_dir", "parts")
    rest = stand_in(*flags, "--num_children", "5", "--update_lag", "0", "--run_dir", "parts")
    assert len(first) == 2 and len(rest) == 3 and sorted(first + rest) == sorted(whole)
    assert rows_without_seconds(Path("parts")) == rows_without_seconds(Path("whole"))


def test_a_child_that_cannot_exist_gets_reward_0_and_an_error(tmp_path):
    flags = ["--num_layers", "4", "--seed", "1", "--workers", "1", *SMALL]
    result = command("--run_dir", "deep", *flags, cwd=tmp_path)
    rows = rows_without_seconds(tmp_path / "deep")
    failed = [row for row in rows if "error" in row]
    assert failed and all(row["reward"] == 0 and "shrinks below 1x1" in row["error"] for row in failed)
    if len(failed) == len(rows):  # as the policy samples them
        assert result.returncode == 2 and f"all {len(rows)} children failed" in result.stderr
    else:
        assert result.returncode == 0 and f"({len(failed)} failed)" in result.stdout


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value", [("True", True), ("False", False), ("false", False), ("0", False), ("1", True), (None, True)]
)
def test_booleans_are_real(text, value):
    assert train.parse_arguments(["--use_cuda", *([] if text is None else [text])]).use_cuda is value
    assert train.parse_arguments([]).use_cuda is False


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--mode", "train"], "invalid choice: 'train'"),
        (["--num_children", "0"], "must be a whole number from 1"),
        (["--num_children", "ten"], "must be a whole number from 1"),
        (["--num_child", "5"], "unrecognized arguments: --num_child"),
        (["--controller_lr", "-1"], "must be a number from 0"),
        (["--entropy_weight", "nan"], "must be a number from 0"),
        (["--child_epochs", "0"], "must be a number above 0"),
        (["--use_cuda", "maybe"], "must be True or False, not 'maybe'"),
        (["--architecture", "k4f16p0"], "kernel 4 is not one of 3, 5, 7"),
        (["--architecture", "c3x3f36-c3x3f24i2"], "the inputs of c3x3f24i2 are not layers before it"),
        (["--layers_step", "1", "--num_layers", "1", "--layers_every", "40"], "fewer networks of 1 layers"),
        (["--layers_step", "100", "--layers_every", "1"], "beyond 100 layers"),
        (["--strides", "True"], "only --space paper has them"),
        (["--gpus_per_child", "0.5"], "only --cluster shares GPUs"),
        (["--cluster", "auto", "--use_cuda"], "how much of a GPU"),
        (["--cluster", "auto", "--mode", "evaluate"], "trains on this machine"),
        (["--architecture", "resnet"], "'resnet' is not an architecture"),
        (
            ["--dataset", "ImageNet"],
            "'ImageNet' does not exist; give one of MNIST, FashionMNIST, KMNIST, CIFAR10, or your own images: a folder",
        ),
        (["--dataset", str(ROOT / "train.py")], "train.py' is no folder, and neither a .csv nor an .npz file"),
        (["--mode", "evaluate", "--run_dir", "nothing"], "no search in nothing"),
        (
            ["--mode", "generate", "--data_dir", "nowhere", "--dataset", "CIFAR10"],
            "put cifar-10-python.tar.gz into nowhere",
        ),
        (["--mode", "generate", "--data_dir", "nowhere"], "train-images-idx3-ubyte.gz"),
        (["--mode", "evaluate", "--architecture", "k7f8p0-k7f8p0-k7f8p0"], "layer 3 shrinks below 1x1"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for proxy in ("http_proxy", "https_proxy"):  # downloads fail at once, wherever the tests run
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    if "--data_dir" not in flags:
        flags = [*flags, "--data_dir", str(ROOT / "data")]
    with pytest.raises(SystemExit) as stopped:
        train.main(flags)
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in output.err and len(output.err.strip().splitlines()) == 1
    assert not Path("runs").exists()
