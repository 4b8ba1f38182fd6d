"""What would the paper's own search on CIFAR-10 cost? results/paper_cost.json

    python -m benchmarks.paper_cost      3 minutes

Counts the operations of random networks of the paper's space at each depth that the search goes through (§4.1: 12,800
children, 6 layers at first, 2 more every 1,600), and times a training step of some of them on one core.
"""

import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.common import RESULTS
from controller import Controller
from model import PAPER_RECIPE, Child, summarize
from search_space import Architecture, PaperSpace
from utils import environment, write_json

CHILDREN, FIRST_DEPTH, STEP, EVERY = 12_800, 6, 2, 1_600
IMAGES, SHAPE = 45_000, (3, 32, 32)  # training images of CIFAR-10 without the 5,000 held out
SAMPLES, TIMED, BATCH = 20, 2, 16
DEPTHS = [FIRST_DEPTH + STEP * stage for stage in range(CHILDREN // EVERY)]


def random_networks(depth: int, n: int) -> list[Architecture]:
    """Networks as the first policy samples them, nearly uniform."""
    torch.manual_seed(0)
    space = PaperSpace(depth)
    controller = Controller(space.num_choices, space.names)
    return [space.decode(actions) for actions in controller(num_samples=n).actions.tolist()]


def forward_flops(architecture: Architecture) -> int:
    """Operations for one image, 2 per multiply-add."""
    return sum(layer.flops for layer in summarize(Child(architecture, SHAPE, 10)))


def seconds_per_image(architecture: Architecture) -> float:
    """Wall time of one training step (forward and backward) on one core, by image; the first step doesn't count."""
    child, images = Child(architecture, SHAPE, 10), torch.randn(BATCH, *SHAPE)
    for _ in range(2):
        started = time.perf_counter()
        F.cross_entropy(child(images), torch.zeros(BATCH, dtype=torch.int64)).backward()
    return (time.perf_counter() - started) / BATCH


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for depth in tqdm(DEPTHS):
        networks = random_networks(depth, SAMPLES)
        flops = [forward_flops(network) for network in networks]
        speed = [3 * flops[i] / seconds_per_image(networks[i]) for i in range(TIMED)]  # backward is twice forward
        rows.append({"layers": depth, "forward_flops": sum(flops) / SAMPLES, "flops_per_second": sum(speed) / TIMED})
    images = EVERY * PAPER_RECIPE.epochs * IMAGES  # at each depth
    result = {
        "depths": rows,
        "flops": sum(3 * row["forward_flops"] * images for row in rows),
        "core_years": sum(3 * row["forward_flops"] * images / row["flops_per_second"] for row in rows) / 31_557_600,
    }
    write_json(RESULTS / "paper_cost.json", result | {"command": "python -m benchmarks.paper_cost"} | environment())
    print(result)


if __name__ == "__main__":
    main()
