"""The example to learn from: it is short and stands alone, it trains as it says, and it learns."""

import ast
import gzip
import itertools
import json
import math
import re
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from examples import nas_in_one_file as example
from model import Child
from search_space import parse_architecture

SOURCE = Path(example.__file__)


def test_it_is_short_and_stands_alone():
    assert len(SOURCE.read_text().splitlines()) <= 150
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "torchvision"}


def test_its_docstring_says_what_was_measured():
    measured = json.loads((SOURCE.parents[1] / "results" / "nas_in_one_file.json").read_text())
    rows = measured["seeds"]
    assert [row["seed"] for row in rows] == list(range(5))
    assert measured["networks"] == example.NUM_UPDATES * example.CHILDREN_PER_UPDATE
    first, last = ([100 * row[f"{quarter}_quarter"] for row in rows] for quarter in ("first", "last"))
    for row, before, after in zip(rows, first, last, strict=True):
        updates = row["mean_of_each_update"]
        assert 100 * sum(updates[:4]) / 4 == pytest.approx(before, abs=2e-3) and before < after
        assert 100 * sum(updates[-4:]) / 4 == pytest.approx(after, abs=2e-3)
    said = " ".join(example.__doc__.split())
    for numbers in (first, last):
        assert "{:.1f}, {:.1f}, {:.1f}, {:.1f} and {:.1f}".format(*numbers) in said
    assert f"{100 * measured['gain']:.1f} ± {100 * measured['gain_ci']:.1f} points" in said
    gains = [after - before for before, after in zip(first, last, strict=True)]
    assert 100 * measured["gain"] == pytest.approx(sum(gains) / 5, abs=2e-3)


def test_it_trains_real_networks_and_prints_a_line_for_each_update(monkeypatch, capsys):
    monkeypatch.setattr(example, "HELD_OUT", 20)
    monkeypatch.setattr(example, "TRAIN_IMAGES", 64)
    torch.manual_seed(0)
    images, labels = torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (100,))
    trained = example.search(images, labels, num_updates=2)
    assert len(trained) == 2 * example.CHILDREN_PER_UPDATE == 16
    assert all(0 <= accuracy <= 1 and len(actions) == 6 for accuracy, actions in trained)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_it_learns_what_is_rewarded_against_a_moving_average_of_earlier_rewards(monkeypatch, capsys):
    monkeypatch.setattr(example, "make_child", lambda actions: actions)
    monkeypatch.setattr(example, "train_child", lambda actions, *_: sum(actions) / 100)
    torch.manual_seed(0)
    rewards = [reward for reward, _ in example.search(None, None)]
    assert sum(rewards[-32:]) / 32 > sum(rewards[:32]) / 32 + 0.02  # 0.06 on average at first, at most 0.12
    means = [sum(rewards[start : start + 8]) / 8 for start in range(0, 128, 8)]
    printed = re.findall(r"mean accuracy (\S+)  baseline (\S+)  entropy (\S+)", capsys.readouterr().out)
    baseline = means[0]
    for mean, (said_mean, said_baseline, _) in zip(means, printed, strict=True):
        assert float(said_mean) == pytest.approx(mean, abs=6e-4)
        assert float(said_baseline) == pytest.approx(baseline, abs=6e-4)
        baseline = 0.8 * baseline + 0.2 * mean
    first, last = (float(entropy) for _, _, entropy in (printed[0], printed[-1]))
    assert first == pytest.approx(6 * math.log(3), abs=0.02) and last < first - 1


def test_the_controller_samples_from_its_own_probabilities():
    torch.manual_seed(2)
    controller = example.Controller()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(15)  # far from uniform
        actions, log_prob, entropy = controller(5_000)
    probability = dict(zip(map(tuple, actions.tolist()), log_prob.exp().tolist(), strict=True))
    sequence = max(probability, key=probability.get)
    frequency = (actions == torch.tensor(sequence)).all(1).float().mean().item()
    assert frequency == pytest.approx(probability[sequence], rel=0.15) and frequency > 0.05
    # Both are estimates of the policy's entropy.
    assert entropy.mean().item() == pytest.approx(-log_prob.mean().item(), rel=0.03)
    # The second token depends on the first: their joint frequencies are not the products of their own.
    pairs = (3 * actions[:, 0] + actions[:, 1]).bincount(minlength=9).view(3, 3) / len(actions)
    independent = pairs.sum(1, keepdim=True) * pairs.sum(0)
    assert (pairs - independent).abs().max() > 0.05


def test_its_networks_have_the_feature_maps_of_the_programs():
    for kernel1, padding1, kernel2, padding2 in itertools.product(range(3), repeat=4):
        child = example.make_child([kernel1, 0, padding1, kernel2, 1, padding2])
        text = f"k{3 + 2 * kernel1}f8p{padding1}-k{3 + 2 * kernel2}f16p{padding2}"
        same = Child(parse_architecture(text), (1, 28, 28), 10)
        with torch.no_grad():
            assert child(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
        assert [layer.weight.shape for layer in child if isinstance(layer, nn.Conv2d | nn.Linear)] == [
            layer.weight.shape for layer in (*same.convs, same.hidden, same.classifier)
        ]


def test_the_reward_is_from_images_that_were_not_trained_on(monkeypatch):
    monkeypatch.setattr(example, "HELD_OUT", 20)
    monkeypatch.setattr(example, "TRAIN_IMAGES", 64)

    class Noted(nn.Linear):
        def forward(self, images):
            seen[torch.is_grad_enabled()] += (255 * images[:, 0, 0, 0]).round().int().tolist()
            return super().forward(images.flatten(1))

    seen = {True: [], False: []}
    images = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    child = Noted(4, 10)
    accuracy = example.train_child(child, images, torch.arange(100) % 10)
    assert seen[False] == list(range(20))
    assert len(seen[True]) == 64 == len(set(seen[True])) and min(seen[True]) >= 20
    predicted = child(images[:20] / 255).argmax(1)
    assert accuracy == pytest.approx((predicted == torch.arange(20) % 10).float().mean().item())


def write_mnist(folder: Path) -> None:
    """Files in MNIST's format: three training images, of the pixels 1, 2 and 3, labelled 7, 8 and 9."""
    for part in ("train", "t10k"):
        pixels = b"".join(bytes([value] * 28 * 28) for value in (1, 2, 3))
        images = struct.pack(">4i", 2051, 3, 28, 28) + pixels
        labels = struct.pack(">2i", 2049, 3) + bytes([7, 8, 9])
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_mnist_is_unpacked_and_nothing_is_left_beside_it(tmp_path):
    write_mnist(tmp_path)
    images, labels = example.load_mnist(tmp_path)
    assert images.shape == (3, 1, 28, 28) and images[:, 0, 5, 5].tolist() == [1, 2, 3] and labels.tolist() == [7, 8, 9]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["none there", "one missing", "cut off", "not packed"])
def test_without_mnist_it_says_so_in_one_line(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(example, "DATA", tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas_in_one_file.py"])
    if damage != "none there":
        write_mnist(tmp_path)
        file = tmp_path / "train-images-idx3-ubyte.gz"
        if damage == "one missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-20] if damage == "cut off" else b"<html>")
    with pytest.raises(SystemExit, match="2"):
        example.main()
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and str(tmp_path) in said.err
