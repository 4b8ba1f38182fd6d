"""How many workers can one search keep busy? results/scaling.json

    python -m benchmarks.scaling                        simulation and picture, a minute
    python -m benchmarks.scaling --check RUN_DIR ...    real searches against their simulation, first
    python -m benchmarks.scaling --throughput           children a second that the main process handles, first

A discrete-event simulation fed with a real search's ledger: how long each child took; every sample is a new child, as
with replay. Children start in the order of sampling wherever a worker is free, and a batch is sampled once the
update `update_lag` + 1 batches back is through, as in PolicyGradient.search. What --check and --throughput measured is kept in the
file.
"""

import argparse
import heapq
import itertools
import json
import math
import random
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import train
from benchmarks.common import CHILDREN_PER_UPDATE, PENDING_PER_WORKER, RESULTS, input_errors, recommended_lag
from utils import environment, read_json, read_ledger, usable_cores, write_json

FILE, LEDGER = RESULTS / "scaling.json", RESULTS / "mnist"
WORKERS = tuple(2**i for i in range(11))
REPLAY = 100  # of a search with hundreds of workers: with 1,000 an update takes ten times as long
CHILDREN_PER_WORKER = 50  # length of a simulated search


def batches_of(run_dir: Path) -> list[list[float]]:
    """Seconds of the new children of each update of a real search, empty lists where all samples were known."""
    rows, _ = read_ledger(run_dir / "children.jsonl")
    batches = [[] for _ in range(1 + max(row["update"] for row in rows.values()))]
    for _, row in sorted(rows.items()):
        batches[row["update"]].append(row["seconds"])
    return batches


def simulate(batches: list[list[float]], num_workers: int, update_lag: int) -> dict:
    """Wall time in seconds and share of worker time used, with the drain at the end and up to the last start."""
    free, through, children = [0.0] * num_workers, [], []
    for batch, durations in enumerate(batches):
        sampled = through[batch - update_lag - 1] if batch > update_lag else 0.0
        ends = [through[-1] if through else 0.0]
        for seconds in durations:
            started = max(sampled, heapq.heappop(free))
            heapq.heappush(free, started + seconds)
            children.append((started, seconds))
            ends.append(started + seconds)
        through.append(max(ends))
    wall, last = through[-1], max(started for started, _ in children)
    busy = sum(seconds for _, seconds in children)
    until_last = sum(min(seconds, last - started) for started, seconds in children)
    return {
        "wall": wall,
        "used": busy / (num_workers * wall),
        "used_without_drain": until_last / (num_workers * (last or wall)),
    }


def long_search(batches: list[list[float]], num_workers: int) -> list[list[float]]:
    """A search of many children, which take as long as those of a real one."""
    dice, pool = random.Random(0), list(itertools.chain(*batches))
    num_batches = math.ceil(CHILDREN_PER_WORKER * num_workers / CHILDREN_PER_UPDATE)
    return [dice.choices(pool, k=CHILDREN_PER_UPDATE) for _ in range(num_batches)]


def check(run_dir: Path) -> dict:
    """The wall time of a real search, which was not interrupted and has no finalists, beside its simulation."""
    config, measured = read_json(run_dir / "config.json"), read_json(run_dir / "time.json")
    assert config["flags"]["num_finalists"] == 0
    num_workers, lag = config["flags"]["workers"], config["flags"]["update_lag"]
    simulated = simulate(batches_of(run_dir), num_workers, lag)
    return {
        "workers": num_workers,
        "update_lag": lag,
        "children": config["num_children"],
        "wall_measured": measured["wall"],
        "wall_simulated": simulated["wall"],
        "difference": simulated["wall"] / measured["wall"] - 1,
    }


def instant_child(data: object, architecture: object, recipe: object, seed: int, device: str) -> dict:
    """In the place of train.search_child: a child that takes no time."""
    return {"val_accuracy": 0.5 + seed % 997 / 2000, "parameters": 1, "seconds": 0.0}


def throughput(flags: list[str], num_children: int) -> float:
    """Children a second of a whole search with instant children, from the first row to the last."""
    train.search_child = instant_child
    with tempfile.TemporaryDirectory() as folder:
        flags = [*flags, "--num_children", str(num_children), "--num_finalists", "0", "--run_dir", folder]
        flags += ["--space", "paper", "--num_layers", "6", "--children_per_update", str(CHILDREN_PER_UPDATE)]
        append, times = train.utils.Ledger.append, []
        train.utils.Ledger.append = lambda ledger, row: (times.append(time.perf_counter()), append(ledger, row))
        train.main([*flags, "--train_images", "100"])
        train.utils.Ledger.append = append
    return (len(times) - 1) / (times[-1] - times[0])


@input_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="*", type=Path, default=[], metavar="RUN_DIR")
    parser.add_argument("--throughput", action="store_true")
    args = parser.parse_args()
    result = json.loads(FILE.read_text()) if FILE.exists() else {}
    if args.check:
        result["checks"] = [check(run_dir) for run_dir in args.check]
        result["checks_measured_with"] = environment()
    if args.throughput:
        flags = ["--update_lag", str(recommended_lag(800)), "--replay", str(REPLAY)]
        cores = usable_cores()
        result["children_per_second"] = {
            "local": throughput(["--workers", str(cores), *flags], 4000),
            "ray": throughput(["--cluster", "local", "--workers", str(cores), *flags], 4000),
        }
        result["children_per_second_measured_with"] = environment()
    batches, simulated = batches_of(LEDGER), {}
    for name, lag_of in (
        (f"recommended lag, {PENDING_PER_WORKER:g} samples under way for each worker", recommended_lag),
        ("lag 0", lambda _: 0),
    ):
        simulated[name] = []
        for num_workers in sorted({*WORKERS, 800}):
            lag = lag_of(num_workers)
            search = long_search(batches, num_workers)
            simulated[name].append({"workers": num_workers, "update_lag": lag} | simulate(search, num_workers, lag))
    durations, limits, search = list(itertools.chain(*batches)), {}, long_search(batches, 800)
    for pending in (1, 1.5, 2, PENDING_PER_WORKER):
        lag = math.ceil(pending * 800 / CHILDREN_PER_UPDATE) - 1
        limits[str(pending)] = simulate(search, 800, lag)["used_without_drain"]
    result |= {
        "simulated": simulated,
        "samples_under_way_for_each_of_800_workers": limits,
        "slowest_child": max(durations) * len(durations) / sum(durations),  # times the mean
        "children_per_update": CHILDREN_PER_UPDATE,
        "children_per_worker": CHILDREN_PER_WORKER,
        "mean_seconds": sum(durations) / len(durations),
    }
    command = "python -m benchmarks.scaling, --throughput and --check runs/workers-1 runs/workers-2 once before"
    write_json(FILE, result | {"command": command} | environment())
    print(json.dumps({k: v for k, v in result.items() if k not in ("simulated", "versions", "machine")}, indent=2))
    for name, rows in simulated.items():
        print(name)
        for row in rows:
            print(
                "  {workers:>5} workers, lag {update_lag:>3}: {used_without_drain:.1%} used, {used:.1%} with the drain".format(
                    **row
                )
            )


if __name__ == "__main__":
    main()
