"""How good is a search? Replays searches on a table that holds the truth about a whole space.

    python -m benchmarks.search_quality                                       on results/mnist_space.csv
    python -m benchmarks.search_quality --table nasbench_macro.csv.gz --name nasbench_macro

A table is a CSV file (or .csv.gz), a row for each network: first the decisions, in numbers or words (a column
`architecture` is left out), then `val_0, val_1, ...` (or `test_s0, ...`), the accuracies of single trainings, and perhaps
`test_mean`. Decisions `kernel_1, kernel_2, ...` of as many choices share an output head of the controller.

In each repetition every network has its own order of trainings, the same for all methods: the first is the reward, the
second the one of a finalist, and those that are left the truth (of one or two trainings: the last). Every method pays for
distinct networks only, and hands over the best it has observed; "with finalists", some of the budget goes into
training the best few once more, as train.py does. Differences to the controller are paired and tested two-sidedly.
Writes results/search_quality_<name>.json. TPE and GP are Optuna's: `pip install optuna scipy`.
"""

import argparse
import csv
import gzip
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec
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
UNDER_WAY = 10  # samples, as many as the controller has
Actions = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    num_choices: tuple[int, ...]
    names: tuple[str, ...] | None  # decisions of the same name share their output head
    index: dict[Actions, int]  # row of each network
    trainings: np.ndarray  # (networks, trainings) accuracies, 0 to 1
    test: np.ndarray | None  # (networks,) mean test accuracy, where it is not what is searched for

    @property
    def mean(self) -> np.ndarray:
        """Mean accuracy of each network (networks,)."""
        return self.trainings.mean(1)


def read_table(path: Path) -> Table:
    """Read a table as described at the top of this file; what is wrong with it ends the program with one line."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        sys.exit(f"{path} can't be read: {error}")
    columns = list(rows[0]) if rows else []
    first = next((i for i, column in enumerate(columns) if re.match(r"(val|test)_", column)), 0)
    decisions = [column for column in columns[:first] if column != "architecture"]
    kind = "val" if "val_0" in columns else "test"
    singles = [column for column in columns if re.fullmatch(rf"{kind}_s?[0-9]+", column)]
    if not decisions or not singles:
        sys.exit(
            f"{path} is no table: it needs columns of decisions, and then val_0, val_1, ... or test_s0, test_s1, ..."
        )
    try:
        trainings = np.array([[float(row[column]) for column in singles] for row in rows])
        test = np.array([float(row["test_mean"]) for row in rows]) if kind == "val" and "test_mean" in columns else None
    except (ValueError, TypeError) as error:
        sys.exit(f"{path}: every accuracy must be a number ({error})")
    if not np.isfinite(trainings).all():
        sys.exit(f"{path}: every accuracy must be a finite number")
    scale = 100 if trainings.max() > 1 else 1
    choices = {d: sorted({row[d] for row in rows}, key=order) for d in decisions}
    actions = [tuple(choices[d].index(row[d]) for d in decisions) for row in rows]
    num_choices = tuple(len(choices[d]) for d in decisions)
    if len(set(actions)) != len(rows) or len(rows) != math.prod(num_choices):
        sys.exit(
            f"{path} needs each combination of its decisions once: {math.prod(num_choices):,} rows, not {len(rows):,}"
        )
    names = tuple(d.rsplit("_", 1)[0] for d in decisions)
    shared = len(set(names)) < len(names) and len(set(zip(names, num_choices, strict=True))) == len(set(names))
    index = {a: i for i, a in enumerate(actions)}
    return Table(
        num_choices, names if shared else None, index, trainings / scale, None if test is None else test / scale
    )


def order(choice: str) -> tuple:
    """Numbers by value, then words by the alphabet."""
    try:
        return 0, float(choice), choice
    except ValueError:
        return 1, 0.0, choice


class Observed:
    """The accuracies of one repetition, the same whatever a method asks for, and what it has asked for."""

    def __init__(self, table: Table, seed: int) -> None:
        self.table, (n, k) = table, table.trainings.shape
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(k), (n, 1)), axis=1)
        drawn = np.take_along_axis(table.trainings, orders, axis=1)  # (networks, trainings) in this repetition's order
        self.first, self.second, self.truth = drawn[:, 0], drawn[:, min(1, k - 1)], drawn[:, min(2, k - 1) :].mean(1)
        self.seen: dict[Actions, float] = {}

    def __call__(self, actions: Actions) -> float:
        return self.seen.setdefault(actions, float(self.first[self.table.index[actions]]))

    def best(self, budget: int, finalists: bool) -> Actions:
        """What is handed over when the budget is spent: the best observed, of equal ones the earliest."""
        children, num_finalists = spend(budget) if finalists else (budget, 0)
        ranking = sorted(list(self.seen)[:children], key=self.seen.get, reverse=True)
        if not num_finalists:
            return ranking[0]
        return max(ranking[:num_finalists], key=lambda a: self.seen[a] + self.second[self.table.index[a]])

    def true(self, actions: Sequence[Actions]) -> float:
        """Mean true accuracy."""
        return float(np.mean(self.truth[[self.table.index[a] for a in actions]]))


def spend(budget: int) -> tuple[int, int]:
    """The largest number of children that leaves enough of the budget for train.py's finalists, and their number."""
    limit = parse_arguments([]).num_finalists
    children = next(n for n in range(budget, 0, -1) if n + count_finalists(n, limit) <= budget)
    return children, count_finalists(children, limit)


# --- the controller -----------------------------------------------------------------------------------------------


def policy_gradient(observed: Observed, budget: int, seed: int, flags: str = "") -> dict:
    """The program's own controller and update with the given flags; also what its policy prefers over time."""
    args = parse_arguments([*flags.split(), "--seed", str(seed)])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    table, preferred, entropy = observed.table, {}, []
    controller = Controller(table.num_choices, table.names, args.hidden_size, args.controller_layers)
    search = PolicyGradient(controller, **update_settings(args))
    budgets, grid = list(_budgets), list(curve_points())
    for metrics in search.search(lambda actions: observed(actions) ** args.reward_exponent, budget):
        while grid and len(observed.seen) >= grid[0]:
            entropy.append(metrics["entropy"])
            grid.pop(0)
        while budgets and len(observed.seen) >= budgets[0]:
            preferred[budgets.pop(0)] = prefers(controller)
    preferred |= {left: prefers(controller) for left in budgets}  # of a search that ended before its budget was spent
    entropy += [metrics["entropy"]] * len(grid)
    modes = {budget: max(set(samples), key=samples.count) for budget, samples in preferred.items()}
    return {"modes": modes, "samples": preferred, "entropy": entropy}


@torch.no_grad()
def prefers(controller: Controller) -> list[Actions]:
    """1,000 samples of the policy."""
    actions = controller(num_samples=1000, generator=torch.Generator().manual_seed(0)).actions
    return list(map(tuple, actions.tolist()))


# --- its rivals: each has ask() for a network and tell(network, reward) ---------------------------------------------


class RandomSearch:
    def __init__(self, num_choices: tuple[int, ...], seed: int) -> None:
        self.num_choices, self.random = num_choices, np.random.default_rng((seed, 1))

    def ask(self) -> Actions:
        return tuple(int(self.random.integers(n)) for n in self.num_choices)

    def tell(self, actions: Actions, reward: float) -> None:
        pass


class Evolution(RandomSearch):
    """Regularised evolution (Real et al. 2019): the best of a sample is mutated in one decision, the oldest dies."""

    def __init__(self, num_choices: tuple[int, ...], seed: int, population: int = 10, sample: int = 5) -> None:
        super().__init__(num_choices, seed)
        self.sample, self.asked, self.alive = sample, 0, deque(maxlen=population)

    def ask(self) -> Actions:
        self.asked += 1
        if self.asked <= self.alive.maxlen or len(self.alive) < self.sample:
            return super().ask()
        tournament = self.random.choice(len(self.alive), self.sample, replace=False)
        parent = max((self.alive[i] for i in tournament), key=lambda member: member[1])[0]
        step = int(self.random.integers(len(parent)))
        others = [choice for choice in range(self.num_choices[step]) if choice != parent[step]]
        return (*parent[:step], int(self.random.choice(others or [0])), *parent[step + 1 :])

    def tell(self, actions: Actions, reward: float) -> None:
        self.alive.append((actions, reward))


class LocalSearch(RandomSearch):
    """Local search with restarts (White et al. 2020): to the best neighbour in one decision, while it is better.

    Where the last neighbours are under way, random networks are asked for.
    """

    def __init__(self, num_choices: tuple[int, ...], seed: int) -> None:
        super().__init__(num_choices, seed)
        self.rewards: dict[Actions, float] = {}
        self.centre: Actions | None = None
        self.neighbours: list[Actions] = []
        self.queue: list[Actions] = []  # not asked for yet

    def ask(self) -> Actions:
        if self.queue:
            return self.queue.pop()
        if not {self.centre, *self.neighbours} <= {None, *self.rewards}:
            return super().ask()
        best = max(self.neighbours, key=self.rewards.get, default=None)
        better = best is not None and self.rewards[best] > self.rewards[self.centre]
        self.centre = best if better else super().ask()
        self.neighbours = [
            (*self.centre[:t], choice, *self.centre[t + 1 :])
            for t, n in enumerate(self.num_choices)
            for choice in range(n)
            if choice != self.centre[t]
        ]
        self.queue = [*(self.neighbours[i] for i in self.random.permutation(len(self.neighbours))), self.centre]
        return self.queue.pop()

    def tell(self, actions: Actions, reward: float) -> None:
        self.rewards[actions] = reward


class Optuna:
    """One of Optuna's samplers: the multivariate tree-structured Parzen estimator, or a Gaussian process."""

    def __init__(self, num_choices: tuple[int, ...], seed: int, sampler: str = "TPE", **settings) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.num_choices, self.trials = num_choices, deque()
        sampler = getattr(optuna.samplers, f"{sampler}Sampler")(seed=seed, warn_independent_sampling=False, **settings)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> Actions:
        self.trials.append(self.study.ask())
        return tuple(self.trials[-1].suggest_categorical(str(t), range(n)) for t, n in enumerate(self.num_choices))

    def tell(self, actions: Actions, reward: float) -> None:
        self.study.tell(self.trials.popleft(), reward)


def rival(
    observed: Observed, budget: int, seed: int, method: type | None = None, under_way: int = 1, **settings
) -> dict:
    """Search until `budget` networks have been seen, with so many samples under way, told in their order."""
    torch.set_num_threads(1)
    searcher, out, asked = method(observed.table.num_choices, seed, **settings), deque(), 0
    while len(observed.seen) < budget and asked < 20 * budget:  # some ask again and again for what they know
        while len(out) < under_way and len(observed.seen) < budget:
            out.append(searcher.ask())
            observed(out[-1])
            asked += 1
        searcher.tell(out[0], observed(out.popleft()))
    return {}


def everything(observed: Observed, budget: int, seed: int) -> dict:
    """Train the whole space: the bound that the noise of a single training sets, whatever the budget."""
    for actions in observed.table.index:
        observed(actions)
    return {}


TPE = {"method": Optuna, "sampler": "TPE", "multivariate": True}
METHODS: dict[str, tuple[Callable, dict]] = {
    "controller": (policy_gradient, {}),
    "random search": (rival, {"method": RandomSearch}),
    f"regularised evolution, {UNDER_WAY} under way": (rival, {"method": Evolution, "under_way": UNDER_WAY}),
    f"local search, {UNDER_WAY} under way": (rival, {"method": LocalSearch, "under_way": UNDER_WAY}),
    f"TPE, {UNDER_WAY} under way": (rival, TPE | {"constant_liar": True, "under_way": UNDER_WAY}),
    "regularised evolution, 10 and 3": (rival, {"method": Evolution, "sample": 3}),  # one at a time, as the next ones
    "regularised evolution, 10 and 5": (rival, {"method": Evolution}),
    "local search": (rival, {"method": LocalSearch}),
    "TPE": (rival, TPE),
    "controller without replay": (policy_gradient, {"flags": "--replay 0"}),
    "paper's controller": (policy_gradient, {"flags": "--paper"}),
    "everything": (everything, {}),
}
COMPARED = list(METHODS)  # by default
METHODS["Gaussian process"] = rival, {"method": Optuna, "sampler": "GP"}  # slow
METHODS |= {f"lag {lag}": (policy_gradient, {"flags": f"--update_lag {lag}"}) for lag in (0, 1, 2, 4, 9)}
METHODS |= {  # with lags that keep so many workers busy
    f"{workers} workers": (
        policy_gradient,
        {"flags": f"--children_per_update {CHILDREN_PER_UPDATE} --update_lag {recommended_lag(workers)}"},
    )
    for workers in (1, 8, 64, 800)
}
CHANGES = {  # what differs from the paper's settings: here, there
    "network and learning rate": (
        "--controller_layers 1 --hidden_size 64 --controller_lr 0.02",
        "--controller_layers 2 --hidden_size 35 --controller_lr 0.0006",
    ),
    "ranks": ("--reward_scale rank", "--reward_scale none"),
    "entropy bonus": ("--entropy_weight 0.22", "--entropy_weight 0"),
    "replay": ("--replay 1000", "--replay 0"),
    "batches of 2": ("--children_per_update 2", "--children_per_update 8"),
}
METHODS |= {f"{name} alone": (policy_gradient, {"flags": f"--paper {here}"}) for name, (here, _) in CHANGES.items()}
METHODS |= {f"without {name}": (policy_gradient, {"flags": there}) for name, (_, there) in CHANGES.items()}


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


def repetition(method: str, seed: int) -> dict:
    """One search: the true accuracy of what it hands over at each budget, and its curves over the children."""
    observed, (search, settings) = Observed(_table, seed), METHODS[method]
    extra = search(observed, max(_budgets), seed, **settings)
    size, all_of_it = len(_table.index), method == "everything"
    found = {b: observed.best(size if all_of_it else b, finalists=False) for b in _budgets}
    finals = {b: observed.best(size + 10 if all_of_it else b, finalists=True) for b in _budgets}
    finals = {"finals": finals} if _table.trainings.shape[1] > 2 else {}  # or they were chosen by what is the truth
    handed_over = {"found": found} | finals | ({"modes": extra.pop("modes")} if "modes" in extra else {})
    handed_over = {kind: {b: [a] for b, a in by_budget.items()} for kind, by_budget in handed_over.items()}
    handed_over |= {"samples": extra.pop("samples")} if "samples" in extra else {}
    result = {}
    for kind, by_budget in handed_over.items():
        rows = {b: [_table.index[a] for a in actions] for b, actions in by_budget.items()}
        result[kind] = {b: observed.true(actions) for b, actions in by_budget.items()}
        result[f"{kind}_all"] = {b: float(_table.mean[row].mean()) for b, row in rows.items()}
        if _table.test is not None:
            result[f"{kind}_test"] = {b: float(_table.test[row].mean()) for b, row in rows.items()}
        # By the mean of all trainings; 1 is the best.
        result[f"{kind}_rank"] = {b: 1 + int((_table.mean > _table.mean[row[0]]).sum()) for b, row in rows.items()}
    children, rewards = list(observed.seen), list(observed.seen.values())
    tops = {k: [float(np.mean(sorted(rewards[:n])[-k:])) for n in curve_points()] for k in TOP}
    truth = [observed.true([observed.best(n, finalists=False)]) for n in curve_points()]
    steps = {b: observed.true(children[b - 20 : b]) for b in range(20, len(children) + 1, 20)}
    # The children between half of the budget and the whole: none where a policy collapsed before.
    late = {b: observed.true(children[b // 2 : b]) for b in _budgets if len(children) > b // 2}
    return result | {"tops": tops, "truth": truth, "children": len(children), "steps": steps, "late": late} | extra


def sign_flip_p(differences: np.ndarray, rounds: int = 10_000) -> float:
    """Two-sided p-value of a mean difference of 0 between paired values, by flipping their signs at random."""
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(rounds, len(differences)))
    return float((1 + (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).sum()) / (rounds + 1))


def mean_ci(values: Sequence) -> tuple:
    """Mean over the first axis, and half the width of its 95 % interval."""
    values = np.array(values, dtype=float)
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return values.mean(0).tolist(), (1.96 * spread / math.sqrt(len(values))).tolist()


def summary(values: list[float], controller: list[float] | None) -> dict:
    """Mean and 95 % interval of what a method hands over; the same of the controller minus it, paired, and p."""
    mean, ci = mean_ci(values)
    result = {"n": len(values), "truth": mean, "truth_ci": ci}
    if controller is not None and len(controller) >= len(values) > 1:
        differences = np.array(controller[: len(values)]) - np.array(values)
        lead, lead_ci = mean_ci(differences)
        result |= {"controller_ahead": lead, "controller_ahead_ci": lead_ci, "p": sign_flip_p(differences)}
    return result


def summaries(method: str, runs: dict[str, list[dict]]) -> dict:
    """All that is kept of a method's repetitions."""
    repeated, controller, random = (runs.get(name) for name in (method, "controller", "random search"))
    result = {"budgets": {}, "late": {}, "children": mean_ci([run["children"] for run in repeated])[0]}
    result["fewest_children"] = min(run["children"] for run in repeated)
    for budget in _budgets:
        result["budgets"][str(budget)] = row = {}
        for kind in ("found", "finals", "modes", "samples"):
            if kind in repeated[0]:
                other = [run[kind][budget] for run in controller] if controller and method != "controller" else None
                row[kind] = summary(
                    [run[kind][budget] for run in repeated], other if kind in ("found", "finals") else None
                )
                row[kind]["truth_all"] = mean_ci([run[f"{kind}_all"][budget] for run in repeated])[0]
                ranks = [run[f"{kind}_rank"][budget] for run in repeated]
                row[kind]["rank"] = float(np.mean(ranks))
                row[kind]["top1"] = float(np.mean(np.array(ranks) <= math.ceil(len(_table.index) / 100)))
            if f"{kind}_test" in repeated[0]:
                row[kind]["test"], row[kind]["test_ci"] = mean_ci([run[f"{kind}_test"][budget] for run in repeated])
        if all(budget in run["late"] for run in repeated):
            result["late"][str(budget)] = summary([run["late"][budget] for run in repeated], None)
    common = set.intersection(*(set(run["steps"]) for run in repeated))
    result["children_in_steps_of_20"] = [mean_ci([run["steps"][b] for run in repeated])[0] for b in sorted(common)]
    curves = dict(zip(("truth", "truth_ci"), mean_ci([run["truth"] for run in repeated]), strict=True))
    for k in TOP if random and method == "controller" else ():
        ours, theirs = (mean_ci([run["tops"][k] for run in runs]) for runs in (repeated, random))
        curves[f"top{k}_above_random"] = np.subtract(ours[0], theirs[0]).tolist()
        curves[f"top{k}_above_random_ci"] = np.hypot(ours[1], theirs[1]).tolist()
    if "entropy" in repeated[0]:
        curves["entropy"] = mean_ci([run["entropy"] for run in repeated])[0]
    return result | {"curves": curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=RESULTS / "mnist_space.csv", help="CSV file, see above")
    parser.add_argument("--name", help="of the file in results/ (default: the table's; of MNIST's mnist)")
    parser.add_argument("--repetitions", type=int, default=200, help="searches of each method")
    parser.add_argument("--methods", nargs="*", default=COMPARED, choices=list(METHODS), metavar="METHOD",
                        help=f"of {', '.join(map(repr, METHODS))}; everything trains all")  # fmt: skip
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, help="children, ascending")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="searches at once")
    args = parser.parse_args()
    table, budgets = read_table(args.table), tuple(args.budgets)
    args.name = args.name or args.table.name.split(".")[0].removesuffix("_space")
    if table.trainings.shape[1] == 1:
        print("note: with one training of each network the reward is the truth, too: all are too good by its noise")
    if max(budgets) > len(table.index):
        sys.exit(f"{args.table} has {len(table.index):,} networks: choose smaller --budgets")
    if any(METHODS[name][1].get("method") is Optuna for name in args.methods) and not find_spec("optuna"):
        sys.exit("TPE and GP need Optuna: pip install optuna scipy, or leave them out with --methods")
    start(table, budgets)
    started, runs = time.perf_counter(), {}
    with ProcessPoolExecutor(args.processes, initializer=start, initargs=(table, budgets)) as pool:
        for method in args.methods:
            jobs = pool.map(partial(repetition, method), range(args.repetitions), chunksize=2)
            runs[method] = list(tqdm(jobs, total=args.repetitions, desc=method))
    ranked = np.sort(table.mean)[::-1]
    truth = {"best": ranked[0], "mean": ranked.mean()}
    truth |= {f"top{share}": ranked[math.ceil(len(ranked) * share / 100) - 1] for share in (1, 5)}
    command = f"python -m benchmarks.search_quality --table {args.table.name} --name {args.name}"
    command += f" --budgets {' '.join(map(str, budgets))}" if budgets != BUDGETS else ""
    command += f" --repetitions {args.repetitions} --methods {' '.join(map(repr, args.methods))}"
    result = {
        "table": args.table.name,
        "architectures": len(table.index),
        "trainings": table.trainings.shape[1],
        "truth": {name: float(value) for name, value in truth.items()},
        "grid": list(curve_points()),
        "methods": {method: summaries(method, runs) for method in runs},
        "command": command,
        "seconds": time.perf_counter() - started,
        "date": str(date.today()),
    }
    file = RESULTS / f"search_quality_{args.name}.json"
    write_json(file, result | environment())
    print_table(result)
    print(
        f"{len(table.index):,} networks, the best has {truth['best']:.3%}, the mean {truth['mean']:.3%}; kept in {file}"
    )


KINDS = {"found": "pick", "finals": "pick, finalists", "modes": "most frequent sample", "samples": "policy's samples"}


def print_table(result: dict) -> None:
    """What the methods hand over, as text; where the table has no test accuracy or nothing is compared, a dash."""
    print("true %: accuracy in the last training; controller ahead: its lead over this method; p: two-sided, paired")
    print(f"{'method':<36} {'budget':>6} {'':<20} {'true %':>16} {'test %':>8} {'controller ahead':>18} {'p':>7}")
    for method, kept in result["methods"].items():
        for budget, kinds in kept["budgets"].items():
            for kind, row in kinds.items():
                test = f"{100 * row['test']:.3f}" if "test" in row else "-"
                ahead, p = "-", "-"
                if "p" in row:
                    ahead = f"{100 * row['controller_ahead']:+.3f} ± {100 * row['controller_ahead_ci']:.3f}"
                    p = f"{row['p']:.4f}"
                print(
                    f"{method:<36} {budget:>6} {KINDS[kind]:<20} {100 * row['truth']:>8.3f} ± "
                    f"{100 * row['truth_ci']:.3f} {test:>8} {ahead:>18} {p:>7}"
                )


if __name__ == "__main__":
    main()
