"""What kept searches are worth: mean accuracies of their picks, ranks, and leads of the controller, with intervals.

Intervals and p values are from a bootstrap of searches, paired by repetition, and of the trainings that
give a network's true accuracy (`truth` in the files), the same ones for all methods. Where that is one unseen training
its luck is left out; so is the luck of the
rewards, which all searches share.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from benchmarks.baselines import RandomSearch
from benchmarks.spaces import Generated, Observed, Table
from train import count_finalists, parse_arguments

POINTS = 20  # of the curves over the children
TOP = (1, 5, 15)  # of the paper's Figure 6
WINDOW = 20  # children
ROUNDS = 2000  # of the bootstrap
KINDS = {"found": "pick", "finals": "pick, finalists"}
KINDS |= {f"{kind}_{end}": f"{KINDS[kind]}, {word}" for end, word in (("reward", "by reward"), ("smoothed", "by both"))
          for kind in ("found", "finals")}  # fmt: skip
KINDS |= {"modes": "most frequent sample", "samples": "policy's samples"}
DERIVED = SAME_TIME, EVERYTHING = "random search, same time", "everything"  # shown beside the controller


# --- budgets --------------------------------------------------------------------------------------------------------


@cache
def finalists_of(children: int) -> int:
    """How many of the children train.py would train once more."""
    return count_finalists(children, parse_arguments([]).num_finalists)


@cache
def spend(budget: int) -> tuple[int, int]:
    """The largest number of children that leaves enough of the budget for train.py's finalists, and their number."""
    children = next(n for n in range(budget, 0, -1) if n + finalists_of(n) <= budget)
    return children, finalists_of(children)


def curve_points(budgets: Sequence[int]) -> range:
    """Numbers of children at which the curves are taken."""
    step = max(1, max(budgets) // POINTS)
    return range(step, max(budgets) + 1, step)


# --- measuring ----------------------------------------------------------------------------------------------------


@cache
def resampled(n: int) -> np.ndarray:
    """How often each of n searches is in a round of the bootstrap, as a share (rounds, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), ROUNDS) / n


def resampled_trainings(trainings: np.ndarray, row: int) -> np.ndarray:
    """By how much the mean of a network's trainings differs from round to round (rounds,); 0 of a single one.

    Widened by m / (m - 1) in variance, as the deviations from a mean of m values are too small by that.
    """
    values = trainings[row][np.isfinite(trainings[row])]
    if (m := len(values)) < 2:
        return np.zeros(ROUNDS)
    drawn = values[np.random.default_rng((row, 1)).integers(m, size=(ROUNDS, m))].mean(1)
    return (drawn - values.mean()) * math.sqrt(m / (m - 1))


class Scores(NamedTuple):
    values: np.ndarray  # (n,) one of each search
    luck: np.ndarray | float = 0.0  # (rounds, n) what each round's trainings add to them

    def minus(self, other: "Scores") -> "Scores":
        return Scores(self.values - other.values, self.luck - other.luck)

    def rounds(self) -> np.ndarray:
        """The mean of each round (rounds,): of its searches, with its trainings."""
        weights = resampled(len(self.values))
        return weights @ self.values + np.sum(weights * self.luck, axis=1)


def mean_ci(scores: Scores, name: str = "truth") -> dict:
    """The mean, and half the width of its 95 % interval."""
    low, high = np.quantile(scores.rounds(), (0.025, 0.975))
    return {name: round(float(scores.values.mean()), 7), f"{name}_ci": round(float(high - low) / 2, 7)}


def two_sided_p(differences: Scores) -> float:
    """Two-sided p-value of a mean difference of 0 between paired values."""
    rounds = differences.rounds()
    tail = min((rounds <= 1e-12).sum(), (rounds >= -1e-12).sum())
    return min(1.0, 2 * float(1 + tail) / (ROUNDS + 1))


class Summary:
    """What all kept searches are worth."""

    def __init__(self, space: Table | Generated, budgets: Sequence[int], runs: dict[str, dict[int, dict]]) -> None:
        self.space, self.budgets, self.runs = space, budgets, dict(runs)
        self.observed, self.lucky = cache(space.observed), cache(self.luck_of)
        if isinstance(space, Table) and "controller" in runs:
            timed, observed = space.seconds is not None, self.observed
            for seed, run in runs["controller"].items() if timed else ():
                self.runs.setdefault(SAME_TIME, {})[seed] = same_time(space, observed(seed), budgets, run, seed)
            for seed in runs["controller"]:
                self.runs.setdefault(EVERYTHING, {})[seed] = everything(space, observed(seed), budgets)

    def luck_of(self, all_trainings: bool, row: int) -> np.ndarray:
        return resampled_trainings(self.space.trainings if all_trainings else self.space.fresh, row)

    def scores(self, entries: dict[int, list], judge: str) -> Scores:
        """Mean true accuracy of some networks of each repetition.

        `judge` says what gives it: the trainings that judge a pick ("found") or a finalist ("finals"), "all" trainings,
        or the "best" estimate there is.
        """
        networks, n = np.array(list(entries.values())), len(entries)  # (n, networks) rows, or values
        if isinstance(self.space, Generated):
            return Scores(networks.mean(1))
        if judge in ("found", "finals"):
            finalists = judge == "finals"
            accuracies = [self.observed(seed).true_accuracy(finalists)[rows] for seed, rows in entries.items()]
        else:
            accuracies = (self.space.true_accuracy if judge == "best" else self.space.trainings.mean(1))[networks]
        values = np.mean(accuracies, axis=1)
        if judge != "all" and not self.space.has_fresh.any():
            return Scores(values)
        unique, column = np.unique(networks, return_inverse=True)
        share = np.zeros((len(unique), n))
        np.add.at(share, (column.reshape(networks.shape), np.arange(n)[:, None]), 1 / networks.shape[1])
        return Scores(values, np.stack([self.lucky(judge == "all", row) for row in unique], 1) @ share)

    def picked(self, method: str, kind: str, k: int) -> dict[int, list]:
        """What a method returns in each repetition, at its k-th budget (or point of the curve)."""
        runs = self.runs.get(method, {})
        if kind in ("modes", "samples"):
            return {seed: np.atleast_1d(run[kind][k]) for seed, run in runs.items()}
        return {seed: [run["children"][run["picks"][kind][k]]] for seed, run in runs.items()}

    def compare(self, method: str, kind: str, k: int, judge: str, end: str = "") -> dict:
        """Mean true accuracy of the picks, and how far the controller's are ahead, paired by repetition."""
        entries = self.picked(method, kind, k)
        result = mean_ci(self.scores(entries, judge), f"truth{end}")
        if method == "controller" or "controller" not in self.runs or kind in ("modes", "samples", "curve"):
            return result
        controller = self.picked("controller", kind.removesuffix("_smoothed"), k)
        if len(common := sorted(entries.keys() & controller.keys())) > 1:
            ours, theirs = (self.scores({seed: some[seed] for seed in common}, judge) for some in (controller, entries))
            result |= mean_ci(ours.minus(theirs), f"controller_ahead{end}")
            result[f"p{end}"] = two_sided_p(ours.minus(theirs))
        return result

    def row(self, method: str, kind: str, k: int) -> dict:
        """All that is told of one kind of answer at one budget."""
        space, entries, budget = self.space, self.picked(method, kind, k), self.budgets[k]
        runs = self.runs[method]
        judge = "finals" if kind.startswith("finals") else "found"
        result = {"n": len(entries)} | self.compare(method, kind, k, judge)
        if space.judges_all:
            result |= self.compare(method, kind, k, "all", "_all")
        if kind == "samples":
            result |= self.share(entries) | {"entropy": float(np.mean([run["entropy"][k] for run in runs.values()]))}
        elif isinstance(space, Table):
            rows = np.array(list(entries.values()))  # (n, 1)
            ranks = 1 + (space.true_accuracy > space.true_accuracy[rows]).sum(1)  # 1 is the best
            hundredth = math.ceil(len(space.true_accuracy) / 100)
            result |= {"rank": float(ranks.mean()), "top1": float(np.mean(ranks <= hundredth))}
            if space.has_fresh.any():
                result["with_fresh"] = float(space.has_fresh[rows].mean())
            if space.test is not None:
                result |= mean_ci(Scores(space.test[rows[:, 0]]), "test")
        elif all("maximum" in run for run in runs.values()):
            shares = [value / runs[seed]["maximum"] for seed, (value,) in entries.items()]
            result |= mean_ci(Scores(np.array(shares)), "of_maximum")
        if space.seconds is not None and kind in ("found", "finals") and method not in DERIVED:
            taken = [run["finals_seconds"][k] if kind == "finals" else space.seconds[run["children"][:budget]].sum()
                     for run in runs.values()]  # fmt: skip
            result["seconds"] = float(np.mean(taken))
        return result

    def share(self, entries: dict[int, list]) -> dict:
        """The share of the possible gain: from the mean of the space, 0, to the mean of its best 20, 1."""
        if isinstance(self.space, Generated):
            return {}
        mean, best = self.space.mean_and_best
        return {"share": round(float((self.scores(entries, "best").values.mean() - mean) / (best - mean)), 4)}

    def told_of(self, method: str) -> dict:
        """All that is told of a method."""
        runs, one = self.runs[method], next(iter(self.runs[method].values()))
        kinds = [kind for kind in KINDS if kind in one["picks"] or kind in one]
        found = {str(b): {kind: self.row(method, kind, k) for kind in kinds} for k, b in enumerate(self.budgets)}
        if method in DERIVED:
            return {"budgets": found}
        lengths = [len(run["children"]) for run in runs.values()]
        fewest = min(lengths)

        def children(start: int, end: int) -> dict[int, list]:
            return {seed: run["children"][start:end] for seed, run in runs.items()}

        result = {"budgets": found, "children": float(np.mean(lengths)), "fewest_children": fewest}
        late = {b: self.scores(children(b // 2, b), "best") for b in self.budgets if b <= fewest}
        result["late"] = {str(b): {"n": len(runs)} | mean_ci(scores) for b, scores in late.items()}
        windows = [children(n - WINDOW, n) for n in range(WINDOW, fewest + 1, WINDOW)]
        means = [self.scores(window, "best").values.mean() for window in windows]
        result["children_in_steps_of_20"] = [round(float(mean), 7) for mean in means]
        if isinstance(self.space, Table):
            result["share_in_steps_of_20"] = [self.share(window)["share"] for window in windows]
        elif fewest >= 2 * WINDOW:
            result["last_40"] = mean_ci(self.scores(children(fewest - 2 * WINDOW, fewest), "best"))
        return result | {"curves": self.curves(method)}

    def curves(self, method: str) -> dict:
        """True accuracy of the pick over the children; and the lead over random search in the best rewards (Figure 6)."""
        points = curve_points(self.budgets)
        curve = [self.compare(method, "curve", k, "found") for k in range(len(points))]
        result = {name: [point[name] for point in curve] for name in ("truth", "truth_ci")}
        if method == "controller" and "random search" in self.runs and isinstance(self.space, Table):
            common = sorted(self.runs[method].keys() & self.runs["random search"].keys())
            for top in TOP:
                ours, theirs = (
                    np.array([[np.sort(rewards[:n])[-top:].mean() for n in points] for seed in common
                              for rewards in [self.observed(seed).rewards[self.runs[name][seed]["children"]]]])
                    for name in (method, "random search")
                )  # (n, points)  # fmt: skip
                lead = [mean_ci(Scores(values), "lead") for values in (ours - theirs).T]
                result[f"top{top}_above_random"] = [point["lead"] for point in lead]
                result[f"top{top}_above_random_ci"] = [point["lead_ci"] for point in lead]
        return result


# --- what follows from the table and other searches ---------------------------------------------------------------


def best_position(observed: Observed, rows: np.ndarray, num_finalists: int) -> tuple[int, np.ndarray]:
    """Which of these children is returned by reward alone, the earliest of equal ones; and the finalists."""
    order = np.argsort(-observed.rewards[rows], kind="stable")
    finalists = np.sort(order[:num_finalists])
    means = observed.drawn[rows[finalists], :2].mean(1)
    return int(finalists[means.argmax()] if num_finalists else order[0]), rows[finalists]


def everything(table: Table, observed: Observed, budgets: Sequence[int]) -> dict:
    """Train the whole space: the bound that the noise of a single training sets, whatever the budget."""
    rows = np.arange(len(table.index))
    ends = {"found": 0} | ({"finals": finalists_of(len(rows))} if table.has_finalists else {})
    picks = {kind: [best_position(observed, rows, n)[0]] * len(budgets) for kind, n in ends.items()}
    return {"children": rows.tolist(), "picks": picks}


def same_time(table: Table, observed: Observed, budgets: Sequence[int], controller: dict, seed: int) -> dict:
    """Random search that goes on until its trainings have taken as long as the controller's within each budget."""
    spent = np.cumsum(table.seconds[controller["children"]])
    limits = {"found": [spent[min(budget, len(spent)) - 1] for budget in budgets]}
    limits |= {"finals": controller["finals_seconds"]} if table.has_finalists else {}
    searcher, found, taken = RandomSearch(table.num_choices, seed), {}, 0.0
    while taken < max(map(max, limits.values())) and len(found) < len(table.index):
        row = table.index[searcher.ask()]
        taken += 0 if row in found else table.seconds[row]
        found[row] = None
    rows = np.array(list(found))
    until = np.cumsum(table.seconds[rows])

    def answer(kind: str, n: int) -> tuple[int, float]:
        position, finalists = best_position(observed, rows[:n], finalists_of(n) if kind == "finals" else 0)
        return position, until[n - 1] + table.seconds[finalists].sum()

    picks = {kind: [] for kind in limits}
    for kind, some in limits.items():
        for limit in some:
            answers = (answer(kind, n) for n in range(1, len(rows) + 1))
            enough = (position for position, seconds in answers if seconds >= limit - 1e-9)
            picks[kind].append(next(enough, answer(kind, len(rows))[0]))
    return {"children": rows.tolist(), "picks": picks}
