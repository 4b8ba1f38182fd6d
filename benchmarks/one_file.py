"""Does examples/nas_in_one_file.py learn? results/nas_in_one_file.json

    python -m benchmarks.one_file      three minutes on two cores

Five seeds, each a whole search: the mean accuracy of the last quarter of its networks against that of the first.
"""

import argparse
import io
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS
from examples.nas_in_one_file import CHILDREN_PER_UPDATE, DATA, NUM_UPDATES, load_mnist, search
from utils import environment, usable_cores, write_json

SEEDS = range(5)
T_QUANTILE = 2.776  # Student's t with four degrees of freedom, 97.5 %


def run(seed: int) -> dict:
    """One search, as `python examples/nas_in_one_file.py --seed SEED` runs it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, labels = load_mnist(DATA)
    started = time.process_time()
    with redirect_stdout(io.StringIO()):
        accuracies = [accuracy for accuracy, _ in search(images, labels)]
    seconds = time.process_time() - started  # of the core: other work does not count
    updates = torch.tensor(accuracies).view(NUM_UPDATES, CHILDREN_PER_UPDATE).mean(1)
    quarter = len(accuracies) // 4
    return {
        "seed": seed,
        "first_quarter": round(statistics.fmean(accuracies[:quarter]), 5),
        "last_quarter": round(statistics.fmean(accuracies[-quarter:]), 5),
        "best": round(max(accuracies), 5),
        "mean_of_each_update": [round(mean, 5) for mean in updates.tolist()],
        "core_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=usable_cores(), help="searches at once")
    args = parser.parse_args()
    made = {"command": "python -m benchmarks.one_file"} | environment()  # now: the commit is that of the code that runs
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(run, SEEDS), total=len(SEEDS), unit="search"))
    gains = [row["last_quarter"] - row["first_quarter"] for row in rows]
    result = {
        "networks": NUM_UPDATES * CHILDREN_PER_UPDATE,
        "gain": round(statistics.fmean(gains), 5),
        "gain_ci": round(T_QUANTILE * statistics.stdev(gains) / math.sqrt(len(gains)), 5),  # half of the 95 % interval
        "seeds": rows,
    }
    write_json(RESULTS / "nas_in_one_file.json", result | made)


if __name__ == "__main__":
    main()
