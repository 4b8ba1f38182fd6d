"""How fast children are trained, beside the original training loop in the same run; writes results/child_speed.json.

python -m benchmarks.child_speed                        about 4 minutes on two otherwise idle cores
python -m benchmarks.child_speed --original_accuracy    once, about 25 minutes: the original's complete trainings,
                                                        kept in results/original_accuracy.json
"""

import argparse
import json
import statistics
import time
from datetime import date

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

from benchmarks.common import PANEL, RESULTS, input_errors, load_data, train_and_test
from datasets import Data, Images, load_images
from model import Child, Recipe, measure, summarize, train_child
from search_space import parse_architecture
from utils import ROOT, child_seed, environment, usable_cores, write_json
from workers import Workers

COMPLETE = ("k3f8p0-k3f8p0", "k5f16p0-k5f32p1", "k7f32p2-k7f32p2")  # the original trained to its end
SEEDS = (0, 1, 2)
ORIGINAL_EPOCHS, ORIGINAL_BATCH = 5, 4
SHAPE = (1, 28, 28)


# --- the original training loop, from its description -------------------------------------------------------------


class OriginalLoop:
    """Batch 4, per-image transforms in two loader processes, SGD 0.001 with momentum 0.9, `loss.item()` each step."""

    def __init__(self, text: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        steps = [transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
        dataset = torchvision.datasets.MNIST(ROOT / "data", train=True, transform=transforms.Compose(steps))
        self.loader = DataLoader(dataset, batch_size=ORIGINAL_BATCH, shuffle=True, num_workers=2)
        self.child = Child(parse_architecture(text), SHAPE, 10).to(memory_format=torch.contiguous_format)
        self.child.norms = nn.ModuleList(nn.Identity() for _ in self.child.norms)  # it had none
        self.optimizer = torch.optim.SGD(self.child.parameters(), lr=0.001, momentum=0.9)

    def steps(self):
        """Train for one epoch, yielding after each step."""
        running_loss = 0.0
        for images, labels in self.loader:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.child(images), labels)
            loss.backward()
            self.optimizer.step()
            running_loss += loss.item()
            yield running_loss


def time_original(text: str, warmup: int = 200, steps: int = 800) -> float:
    """Seconds of a complete 5-epoch training, scaled from a slice after warm-up."""
    loop = OriginalLoop(text).steps()
    for _ in range(warmup):
        next(loop)
    started = time.perf_counter()
    for _ in range(steps):
        next(loop)
    seconds = time.perf_counter() - started
    loop.close()
    return seconds / steps * ORIGINAL_EPOCHS * 60_000 / ORIGINAL_BATCH


@input_errors()
def original_accuracy() -> None:
    """Train the original to its end on three architectures and keep its test accuracies."""
    test, _ = load_images("MNIST", ROOT / "data", train=False)
    file = RESULTS / "original_accuracy.json"
    result = json.loads(file.read_text()) if file.exists() else {"test_accuracy": {}}
    for text in COMPLETE:
        if text in result["test_accuracy"]:
            continue
        loop = OriginalLoop(text)
        for epoch in range(ORIGINAL_EPOCHS):
            for _ in tqdm(loop.steps(), total=len(loop.loader), desc=f"{text}, epoch {epoch + 1}", mininterval=10):
                pass
        result["test_accuracy"][text] = measure(loop.child, test)[0]
        result |= {"command": "python -m benchmarks.child_speed --original_accuracy", "date": str(date.today())}
        write_json(file, result | environment())


# --- ours ---------------------------------------------------------------------------------------------------------


def where_time_goes(train: Images, text: str, images: int = 3200) -> dict[str, float]:
    """Share of the self CPU time per kind of operation while training a child."""
    few = Images(train.pixels[:images], train.labels[:images])
    one = Images(train.pixels[:1], train.labels[:1])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        train_child(parse_architecture(text), Data(few, one, 10), Recipe(epochs=1), seed=0)
    kinds = {"convolution": 0.0, "pooling": 0.0, "linear and Muon": 0.0, "optimizer": 0.0, "other": 0.0}
    names = {
        "convolution": ("mkldnn_convolution", "convolution"),
        "pooling": ("max_pool2d",),
        "linear and Muon": ("addmm", "aten::mm"),
        "optimizer": ("fused_adam", "lerp"),
    }
    for event in profiler.key_averages():
        kind = next((k for k, parts in names.items() if any(part in event.key for part in parts)), "other")
        kinds[kind] += event.self_cpu_time_total
    return {kind: round(time / sum(kinds.values()), 3) for kind, time in kinds.items()}


@input_errors()
def main() -> None:
    """Time ours and the original on the panel, and write results/child_speed.json."""
    cores = usable_cores()
    data = load_data("MNIST")
    train, validation = data[0].train, data[0].held_out
    seen = Recipe.epochs * len(train.labels)

    with Workers(cores, data) as workers:
        order = sorted(PANEL, key=lambda text: -flops_of(text))  # long ones first: all cores end together
        jobs = {
            (t, s): workers.submit(workers.run, train_and_test, t, Recipe(), child_seed(s, t))
            for s in SEEDS for t in order
        }  # fmt: skip
        ours = {job: future.result() for job, future in tqdm(jobs.items(), desc="ours")}
    torch.set_num_threads(cores)
    original = {text: time_original(text) for text in tqdm(PANEL, desc="original")}
    torch.set_num_threads(1)

    rows = []
    for text in PANEL:
        seconds = statistics.fmean(ours[text, s]["seconds"] for s in SEEDS)
        work = flops_of(text) * (3 * seen + len(validation.labels))
        row = {"architecture": text, "seconds": seconds, "original_seconds": original[text], "gflop": work / 1e9}
        row |= {"images_per_second": seen / seconds, "gflops": work / seconds / 1e9}
        row["test_accuracy"] = [ours[text, s]["test_accuracy"] for s in SEEDS]
        rows.append(row)
    complete = json.loads((RESULTS / "original_accuracy.json").read_text())["test_accuracy"]
    per_hour = 3600 * cores / statistics.fmean(row["seconds"] for row in rows)
    original_per_hour = 3600 / statistics.fmean(original.values())
    result = {
        "children_per_hour": per_hour,
        "original_children_per_hour": original_per_hour,
        "ratio": per_hour / original_per_hour,
        "cores": cores,
        "test_accuracy": statistics.fmean(a for r in rows if r["architecture"] in complete for a in r["test_accuracy"]),
        "original_test_accuracy": statistics.fmean(complete.values()),
        "accuracy_architectures": list(complete),
        "panel_test_accuracy": statistics.fmean(a for r in rows for a in r["test_accuracy"]),
        "seeds": len(SEEDS),
        "where_time_goes": {text: where_time_goes(train, text) for text in COMPLETE},
        "rows": rows,
        "command": "python -m benchmarks.child_speed",
        "date": str(date.today()),
    }
    write_json(RESULTS / "child_speed.json", result | environment())
    print_table(result)


def flops_of(text: str) -> int:
    """FLOPs of one image's forward pass."""
    return sum(layer.flops for layer in summarize(Child(parse_architecture(text), SHAPE, 10)))


def print_table(result: dict) -> None:
    header = ("architecture", "s/child", "images/s", "GFLOP/s", "original s", "test %")
    print("{:<18} {:>8} {:>9} {:>8} {:>11} {:>7}".format(*header))
    line = "{architecture:<18} {seconds:>8.2f} {images_per_second:>9,.0f} {gflops:>8.1f}"
    for row in result["rows"]:
        accuracy = 100 * statistics.fmean(row["test_accuracy"])
        print(line.format(**row), f"{row['original_seconds']:>11.0f} {accuracy:>7.2f}")
    print(
        "children per hour: {children_per_hour:,.0f}, original {original_children_per_hour:.1f}: {ratio:.0f} times\n"
        "test accuracy of {accuracy_architectures}: {test_accuracy:.2%}, the original {original_test_accuracy:.2%}; "
        "the whole panel: {panel_test_accuracy:.2%}".format(**result)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original_accuracy", action="store_true", help="train the original to its end on 3 networks")
    original_accuracy() if parser.parse_args().original_accuracy else main()
