"""How good is a search? Replays searches on a table that holds the truth about a whole space.

    python -m benchmarks.search_quality                                       on results/mnist_space.csv
    python -m benchmarks.search_quality --table nasbench_macro.csv.gz --name nasbench_macro

A table is a CSV file (or .csv.gz): the columns before the first accuracy are the decisions (`architecture` is left out),
`val_0, val_1, ...` (or `test_s0, ...`) hold the accuracy of single trainings, from which rewards are drawn, `val_mean`
(or `test_mean`) the truth. Every method pays for distinct architectures only, and hands over the best it has observed;
"with finalists", some of the budget goes into training the best few once more, as train.py does. "Everything" trains
the whole space once: what no search can beat by searching. Writes results/search_quality_<name>.json.
Optuna is needed for TPE only: `pip install optuna`, or leave it out with `--methods`.
"""

import argparse
import csv
import gzip
import itertools
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import CHILDREN_PER_UPDATE, RESULTS, recommended_lag
from controller import Controller
from policy_gradient import PolicyGradient
from train import count_finalists, parse_arguments, update_settings
from utils import environment, usable_cores, write_json

BUDGETS = (25, 50, 100, 200)  # children, the default of --budgets
POINTS = 40  # of the curves over the children
TOP = (1, 5, 15)  # of the paper's Figure 6
Actions = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    num_choices: tuple[int, ...]
    names: tuple[str, ...]  # decisions of the same name share their output head
    rewards: dict[Actions, tuple[float, ...]]  # accuracy of each single training, 0 to 1
    truth: dict[Actions, float]  # mean accuracy that a search tries to maximise, 0 to 1
    test: dict[Actions, float]
    rank: dict[Actions, int]  # by truth, 1 is the best


def read_table(path: Path) -> Table:
    """Read a table as described at the top of this file; rows with an empty cell are an error."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    first = next(i for i, column in enumerate(columns) if re.match(r"(val|test)_", column))
    decisions = [column for column in columns[:first] if column != "architecture"]
    kind = "val" if "val_mean" in columns else "test"
    singles = [column for column in columns if re.fullmatch(rf"{kind}_s?[0-9]+", column)]
    scale = 100 if float(rows[0][f"{kind}_mean"]) > 1 else 1
    choices = {d: sorted({row[d] for row in rows}, key=float) for d in decisions}
    actions = [tuple(choices[d].index(row[d]) for d in decisions) for row in rows]
    truth = {a: float(row[f"{kind}_mean"]) / scale for a, row in zip(actions, rows, strict=True)}
    return Table(
        num_choices=tuple(len(choices[d]) for d in decisions),
        names=tuple(d.rsplit("_", 1)[0] for d in decisions),
        rewards={a: tuple(float(row[c]) / scale for c in singles) for a, row in zip(actions, rows, strict=True)},
        truth=truth,
        test={a: float(row["test_mean"]) / scale for a, row in zip(actions, rows, strict=True)},
        rank={a: place for place, a in enumerate(sorted(truth, key=truth.get, reverse=True), start=1)},
    )


class Observed:
    """The rewards of one repetition, each one of the architecture's single trainings; remembers what was asked."""

    def __init__(self, table: Table, seed: int) -> None:
        self.table, self.random = table, np.random.default_rng(seed)
        self.seen: dict[Actions, float] = {}
        self.second: dict[Actions, float] = {}  # what another training would have given

    def __call__(self, actions: Actions) -> float:
        if actions not in self.seen:
            self.seen[actions], self.second[actions] = self.random.permutation(self.table.rewards[actions])[:2].tolist()
        return self.seen[actions]

    def best(self, budget: int, finalists: bool) -> Actions:
        """What is handed over when the budget is spent: the best observed, of equal ones the earliest."""
        children, num_finalists = spend(budget) if finalists else (budget, 0)
        ranking = sorted(list(self.seen)[:children], key=self.seen.get, reverse=True)
        if not num_finalists:
            return ranking[0]
        return max(ranking[:num_finalists], key=lambda actions: self.seen[actions] + self.second[actions])


def spend(budget: int) -> tuple[int, int]:
    """The largest number of children that leaves enough of the budget for train.py's finalists, and their number."""
    limit = parse_arguments([]).num_finalists
    children = next(n for n in range(budget, 0, -1) if n + count_finalists(n, limit) <= budget)
    return children, count_finalists(children, limit)


# --- methods: each asks `observed` until it has seen `budget` distinct architectures --------------------------------


def policy_gradient(observed: Observed, budget: int, seed: int, flags: str = "") -> dict:
    """The program's own controller and update with the given flags; also the policy's mode and entropy over time."""
    args = parse_arguments([*flags.split(), "--seed", str(seed)])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    controller = Controller(observed.table.num_choices, observed.table.names, args.hidden_size, args.controller_layers)
    if len(set(observed.table.names)) == len(observed.table.names):
        controller = Controller(observed.table.num_choices, None, args.hidden_size, args.controller_layers)
    search = PolicyGradient(controller, **update_settings(args))
    modes, entropy, budgets, grid = {}, [], list(_budgets), list(curve_points())
    for metrics in search.search(lambda actions: observed(actions) ** args.reward_exponent, budget):
        while grid and len(observed.seen) >= grid[0]:
            entropy.append(metrics["entropy"])
            grid.pop(0)
        if budgets and len(observed.seen) >= budgets[0]:
            modes[budgets.pop(0)] = mode(controller)
    modes |= dict.fromkeys(budgets, mode(controller))  # of a search that collapsed before it had spent its budget
    entropy += [metrics["entropy"]] * len(grid)
    return {"modes": modes, "entropy": entropy, "samples": len(search.rewards)}


@torch.no_grad()
def mode(controller: Controller) -> Actions:
    """The most frequent of 1,000 samples."""
    actions = controller(num_samples=1000, generator=torch.Generator().manual_seed(0)).actions
    values, counts = actions.unique(dim=0, return_counts=True)
    return tuple(values[counts.argmax()].tolist())


def random_search(observed: Observed, budget: int, seed: int) -> dict:
    random = np.random.default_rng((seed, 1))
    while len(observed.seen) < budget:
        observed(tuple(int(random.integers(n)) for n in observed.table.num_choices))
    return {}


def evolution(observed: Observed, budget: int, seed: int, population: int = 10, sample: int = 3) -> dict:
    """Regularised evolution (Real et al. 2019): the best of a sample is mutated in one decision, the oldest dies."""
    random, choices = np.random.default_rng((seed, 2)), observed.table.num_choices
    alive: list[Actions] = []
    while len(observed.seen) < budget:
        if len(alive) < population:
            child = [int(random.integers(n)) for n in choices]
        else:
            parent = max((alive[i] for i in random.choice(population, sample, replace=False)), key=observed)
            child, step = list(parent), int(random.integers(len(choices)))
            child[step] = int(random.choice([c for c in range(choices[step]) if c != parent[step]]))
            alive.pop(0)
        observed(tuple(child))
        alive.append(tuple(child))
    return {}


def everything(observed: Observed, budget: int, seed: int) -> dict:
    """Train the whole space: the bound that the noise of a single training sets, whatever the budget."""
    for actions in observed.table.truth:
        observed(actions)
    return {}


def tpe(observed: Observed, budget: int, seed: int) -> dict:
    """Optuna's multivariate tree-structured Parzen estimator."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, warn_independent_sampling=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(5 * budget):
        if len(observed.seen) >= budget:
            break
        trial = study.ask()
        choices = enumerate(observed.table.num_choices)
        study.tell(trial, observed(tuple(trial.suggest_categorical(str(t), range(n)) for t, n in choices)))
    return {}


METHODS: dict[str, tuple[Callable, dict]] = {
    "controller": (policy_gradient, {}),
    "paper's controller": (policy_gradient, {"flags": "--paper"}),
    "random search": (random_search, {}),
    "regularised evolution, 10 and 3": (evolution, {}),
    "regularised evolution, 10 and 5": (evolution, {"sample": 5}),  # the best of population 10, 20, 30, sample 3, 5, 10
    "TPE": (tpe, {}),
    "everything": (everything, {}),
}
COMPARED = list(METHODS)  # by default
METHODS |= {f"lag {lag}": (policy_gradient, {"flags": f"--update_lag {lag}"}) for lag in range(4)}
METHODS |= {  # with lags that keep so many workers busy
    f"{workers} workers{note}": (
        policy_gradient,
        {"flags": f"--children_per_update {CHILDREN_PER_UPDATE} --update_lag {recommended_lag(workers)} {flag}"},
    )
    for workers in (1, 8, 64, 800)
    for note, flag in {"": "", ", weighted": "--importance_weights"}.items()
}


# --- measuring ----------------------------------------------------------------------------------------------------

_table: Table | None = None  # these two: in a process of the pool
_budgets: tuple[int, ...] = BUDGETS


def start(table: Table, budgets: tuple[int, ...]) -> None:
    global _table, _budgets
    _table, _budgets = table, budgets


def curve_points() -> range:
    """Numbers of children at which the curves are taken."""
    step = max(1, max(_budgets) // POINTS)
    return range(step, max(_budgets) + 1, step)


def repetition(method: str, settings: dict, seed: int) -> dict:
    """One search: what it hands over at each budget, and its curves over the children."""
    observed = Observed(_table, seed)
    extra = METHODS[method][0](observed, max(_budgets), seed, **settings)
    budgets = dict.fromkeys(_budgets, len(_table.truth)) if method == "everything" else {b: b for b in _budgets}
    found = {b: observed.best(children, finalists=False) for b, children in budgets.items()}
    if method == "everything":
        finals = dict.fromkeys(_budgets, observed.best(len(_table.truth) + 10, finalists=True))
    else:
        finals = {b: observed.best(b, finalists=True) for b in _budgets}
    rewards = list(observed.seen.values())
    tops = {k: [float(np.mean(sorted(rewards[:n])[-k:])) for n in curve_points()] for k in TOP}
    truth = [_table.truth[observed.best(n, finalists=False)] for n in curve_points()]
    # The children between half of the budget and the whole: none where a policy collapsed before.
    late = {b: [_table.truth[actions] for actions in list(observed.seen)[b // 2 : b]] for b in _budgets}
    late = {b: float(np.mean(values)) for b, values in late.items() if values}
    result = {"found": found, "finals": finals, "late": late, "tops": tops, "truth": truth, "children": len(rewards)}
    return result | extra


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, p = 1.96, successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def permutation_p(a: np.ndarray, b: np.ndarray, rounds: int = 10_000) -> float:
    """One-sided p-value of mean(a) > mean(b)."""
    random, both, observed = np.random.default_rng(0), np.concatenate([a, b]), a.mean() - b.mean()
    differences = [(p := random.permutation(both))[: len(a)].mean() - p[len(a) :].mean() for _ in range(rounds)]
    return (1 + sum(d >= observed - 1e-15 for d in differences)) / (rounds + 1)


def mean_ci(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis, and half the width of its 95 % interval."""
    return values.mean(0), 1.96 * values.std(0, ddof=1) / math.sqrt(len(values))


def summary(table: Table, found: list[Actions], random: list[Actions] | None = None) -> dict:
    """Means with 95 % intervals of what a method hands over; the chance that random search is as good."""
    n, size = len(found), len(table.truth)
    result = {"n": n}
    for name, values in (("truth", table.truth), ("test", table.test), ("rank", table.rank)):
        result[name], result[f"{name}_ci"] = mean_ci(np.array([values[a] for a in found], dtype=float))
    for share in (1, 5):
        hits = sum(table.rank[a] <= math.ceil(size * share / 100) for a in found)
        result[f"top{share}"], result[f"top{share}_ci"] = hits / n, wilson(hits, n)
    if random:
        pair = (np.array([table.truth[a] for a in actions]) for actions in (found, random))
        result["p_above_random"] = permutation_p(*pair)
    return result


def curves(repeated: list[dict], random: list[dict] | None) -> dict:
    """Over the children: true accuracy of the best observed, and top-k mean rewards above random search's."""
    result = dict(zip(("truth", "truth_ci"), mean_ci(np.array([run["truth"] for run in repeated])), strict=True))
    for k in TOP if random else ():
        ours, theirs = (mean_ci(np.array([run["tops"][k] for run in runs])) for runs in (repeated, random))
        result[f"top{k}_above_random"] = ours[0] - theirs[0]
        result[f"top{k}_above_random_ci"] = np.hypot(ours[1], theirs[1])
    if "entropy" in repeated[0]:
        result["entropy"] = np.mean([run["entropy"] for run in repeated], axis=0)
    return {name: values.tolist() for name, values in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=RESULTS / "mnist_space.csv")
    parser.add_argument("--name", default="mnist", help="of the file in results/")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--methods", nargs="*", default=COMPARED, choices=list(METHODS))
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, help="children, ascending")
    args = parser.parse_args()
    table, budgets = read_table(args.table), tuple(args.budgets)
    start(table, budgets)
    started, runs = time.perf_counter(), {}
    with ProcessPoolExecutor(usable_cores(), initializer=start, initargs=(table, budgets)) as pool:
        for method in args.methods:
            settings, n = METHODS[method][1], args.repetitions
            jobs = pool.map(repetition, itertools.repeat(method), itertools.repeat(settings), range(n), chunksize=2)
            runs[method] = list(tqdm(jobs, total=n, desc=method))
    methods = {}
    for method, repeated in runs.items():
        random = runs.get("random search") if method != "random search" else None
        methods[method] = {"budgets": {}, "late": {}, "curves": curves(repeated, random)}
        methods[method]["children"] = float(np.mean([run["children"] for run in repeated]))
        for budget in budgets:
            row = {}
            for kind in ("found", "finals", "modes"):
                if kind in repeated[0]:
                    other = [run[kind][budget] for run in random] if random and kind != "modes" else None
                    row[kind] = summary(table, [run[kind][budget] for run in repeated], other)
            if all(budget in run["late"] for run in repeated):
                late = mean_ci(np.array([[run["late"][budget]] for run in repeated]))
                methods[method]["late"][str(budget)] = {"truth": late[0].item(), "truth_ci": late[1].item()}
            methods[method]["budgets"][str(budget)] = row
    result = {
        "table": args.table.name,
        "architectures": len(table.truth),
        "grid": list(curve_points()),
        "methods": methods,
    }
    ranked = sorted(table.truth.values(), reverse=True)
    result["truth"] = {"best": ranked[0], "mean": float(np.mean(ranked))}
    result["truth"] |= {f"top{share}": ranked[math.ceil(len(ranked) * share / 100) - 1] for share in (1, 5)}
    command = f"python -m benchmarks.search_quality --table {args.table.name} --name {args.name}"
    command += f" --budgets {' '.join(map(str, budgets))}" if budgets != BUDGETS else ""
    command += f" --repetitions {args.repetitions} --methods {' '.join(map(repr, args.methods))}"
    result |= {"command": command, "seconds": time.perf_counter() - started, "date": str(date.today())}
    write_json(RESULTS / f"search_quality_{args.name}.json", result | environment())
    print_table(result)


def print_table(result: dict) -> None:
    """What the methods hand over, as text."""
    print(
        f"{'method':<32} {'budget':>6} {'':<6} {'true %':>16} {'test %':>8} {'rank':>14} {'top 1 %':>8} {'top 5 %':>8} {'p':>7}"
    )
    for method, rows in result["methods"].items():
        for budget, kinds in rows["budgets"].items():
            for kind, row in kinds.items():
                print(
                    f"{method:<32} {budget:>6} {kind:<6} {100 * row['truth']:>8.3f} ± {100 * row['truth_ci']:.3f} "
                    f"{100 * row['test']:>8.3f} {row['rank']:>7.1f} ± {row['rank_ci']:>4.1f} {row['top1']:>8.0%} "
                    f"{row['top5']:>8.0%} {row.get('p_above_random', math.nan):>7.4f}"
                )


if __name__ == "__main__":
    main()
