"""Does examples/nas_in_one_file.py learn? results/nas_in_one_file.json

    python -m benchmarks.one_file      five minutes on one core

Five seeds, each a whole search: the mean accuracy of the last quarter of its networks against that of the first.
"""

import math
import statistics
import time

import torch

from benchmarks.common import RESULTS
from examples.nas_in_one_file import CHILDREN_PER_UPDATE, DATA, NUM_UPDATES, load_mnist, search
from utils import environment, write_json

SEEDS = range(5)
T_QUANTILE = 2.776  # Student's t with four degrees of freedom, 97.5 %


def main() -> None:
    torch.set_num_threads(1)  # as the example does
    made = {"command": "python -m benchmarks.one_file"} | environment()  # now: the commit is that of the code that runs
    images, labels = load_mnist(DATA)
    rows = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        started = time.process_time()
        accuracies = [accuracy for accuracy, _ in search(images, labels)]
        seconds = time.process_time() - started  # of the core: other work does not count
        quarter = len(accuracies) // 4
        first, last = statistics.fmean(accuracies[:quarter]), statistics.fmean(accuracies[-quarter:])
        batches = torch.tensor(accuracies).view(NUM_UPDATES, CHILDREN_PER_UPDATE)
        rows.append(
            {
                "seed": seed,
                "first_quarter": round(first, 5),
                "last_quarter": round(last, 5),
                "best": round(max(accuracies), 5),
                "mean_of_each_update": [round(mean, 5) for mean in batches.mean(1).tolist()],
                "core_seconds": round(seconds, 1),
            }
        )
        print(f"seed {seed}: {first:.4f} in the first quarter, {last:.4f} in the last, {seconds:.0f} s of one core")
    gains = [row["last_quarter"] - row["first_quarter"] for row in rows]
    result = {
        "networks_in_a_quarter": quarter,
        "gain": statistics.fmean(gains),
        "gain_ci": T_QUANTILE * statistics.stdev(gains) / math.sqrt(len(gains)),  # half of the 95 % interval
        "seeds": rows,
    }
    write_json(RESULTS / "nas_in_one_file.json", result | made)


if __name__ == "__main__":
    main()
