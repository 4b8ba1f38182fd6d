"""What searches are replayed on: a table of trained networks, or a large space that is generated.

Both have `num_choices`, `names` and `digest`, and give for each repetition an `observed(seed)`: call it for a network's
reward, and `entry` for what is kept of a network (its row in the table, or its value without noise).
"""

import csv
import gzip
import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

import numpy as np

from utils import InputError

Actions = tuple[int, ...]
BEST = 20  # networks; their mean is what a search could gain over the mean of the space
NO_DECISIONS = ("architecture", "instruction_set")  # columns that may stand among them


# --- a table of all networks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    num_choices: tuple[int, ...]
    names: tuple[str, ...] | None  # decisions of the same name share their output head
    index: dict[Actions, int]  # row of each network
    trainings: np.ndarray  # (networks, trainings) accuracies, 0 to 1, of which a search may see two
    fresh: np.ndarray  # (networks, fresh trainings) accuracies that no search sees, NaN where there is none
    test: np.ndarray | None  # (networks,) mean test accuracy, where it is not what is searched for
    seconds: np.ndarray | None  # (networks,) of one training

    def observed(self, seed: int) -> "Observed":
        return Observed(self, seed)

    @cached_property
    def has_fresh(self) -> np.ndarray:
        """Which networks have fresh trainings (networks,)."""
        return np.isfinite(self.fresh).any(1)

    @cached_property
    def true_accuracy(self) -> np.ndarray:
        """The best estimate for each network (networks,): the mean of its fresh trainings, else of all others."""
        return self.fresh_or(self.trainings.mean(1))

    def fresh_or(self, other: np.ndarray) -> np.ndarray:
        """The mean of the fresh trainings where there are any, else `other` (networks,)."""
        sums = np.nansum(self.fresh, axis=1)
        return np.where(self.has_fresh, sums / np.maximum(1, np.isfinite(self.fresh).sum(1)), other)

    @property
    def mean_and_best(self) -> tuple[float, float]:
        """True accuracy of the mean of the space, and of the mean of its best."""
        return float(self.true_accuracy.mean()), float(np.sort(self.true_accuracy)[-BEST:].mean())

    @property
    def has_finalists(self) -> bool:
        """Whether there is a second training to choose by, and another one to judge by."""
        return self.trainings.shape[1] > 2 or (self.trainings.shape[1] == 2 and bool(self.has_fresh.any()))

    @property
    def judges_all(self) -> bool:
        """Whether picks are judged by the mean of all trainings, too: three or more, and no fresh ones."""
        return self.trainings.shape[1] > 2 and not self.has_fresh.any()

    @property
    def source_of_true_accuracy(self) -> str:
        """Where the true accuracy of a pick comes from, in words."""
        k, fresh = self.trainings.shape[1], self.has_fresh
        unseen = ["the only training, which is the reward", "the second training", "the unseen third training"]
        other = unseen[k - 1] if k < 4 else f"the mean of {k - 2} unseen trainings"
        if fresh.all():
            return "the mean of the fresh trainings"
        return f"the mean of the fresh trainings, or without any {other}" if fresh.any() else other

    @property
    def digest(self) -> str:
        """Of all that a search reads: fresh trainings and test accuracies may be added later."""
        seen = [repr((self.num_choices, self.names, list(self.index))).encode(), self.trainings.tobytes()]
        return digest(*seen, b"" if self.seconds is None else self.seconds.tobytes())

    def notes(self) -> list[str]:
        """What the table lacks, a line each."""
        (n, k), fresh, lines = self.trainings.shape, int(self.has_fresh.sum()), []
        if k == 1:
            lines.append("one training of each network: there are no finalists")
        elif not self.has_finalists:
            lines.append("two trainings of each network and no fresh ones: there are no finalists")
        if k == 1 and fresh < n:
            lines.append(
                "with one training of each network the reward is taken for the true accuracy: all are too good by its noise"
            )
        if 0 < fresh < n:
            rest = {1: "its reward", 2: "its second training, as a finalist by the mean of both"}.get(k, "unseen ones")
            lines.append(f"{fresh:,} of {n:,} networks have fresh trainings: any other pick is judged by {rest}")
        if self.seconds is None:
            lines.append("no seconds of each network: the row of random search in the same time is left out")
        return lines


class Observed:
    """The accuracies of one repetition, the same whatever a method asks for, and what it has asked for."""

    def __init__(self, table: Table, seed: int) -> None:
        self.space, (n, k) = table, table.trainings.shape
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(k), (n, 1)), axis=1)
        self.drawn = np.take_along_axis(
            table.trainings, orders, axis=1
        )  # (networks, trainings), in an order of its own
        self.rewards = self.drawn[:, 0]
        self.seen: dict[Actions, float] = {}

    def __call__(self, actions: Actions) -> float:
        return self.seen.setdefault(actions, float(self.rewards[self.entry(actions)]))

    def again(self, actions: Actions) -> float:
        return float(self.drawn[self.entry(actions), 1])

    def entry(self, actions: Actions) -> int:
        return self.space.index[actions]

    def seconds(self, networks: Sequence[Actions]) -> float:
        """What training them takes."""
        return float(self.space.seconds[[self.entry(actions) for actions in networks]].sum())

    @cache  # noqa: B019
    def true_accuracy(self, finalists: bool = False) -> np.ndarray:
        """The true accuracy of a pick (networks,): fresh trainings; else those that the search has not seen; else all."""
        unseen = self.drawn[:, 2:] if self.drawn.shape[1] > 2 or finalists else self.drawn[:, 1:]
        return self.space.fresh_or((unseen if unseen.shape[1] else self.drawn).mean(1))


def read_table(path: Path) -> Table:
    """Read a table as the page describes it; InputError for what is wrong with it."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    columns = list(rows[0]) if rows else []
    first = next((i for i, column in enumerate(columns) if re.match(r"(val|test|fresh)_", str(column))), 0)
    decisions = [column for column in columns[:first] if column not in NO_DECISIONS]
    kind = "val" if "val_0" in columns else "test"
    singles, fresh, tests = (
        [column for column in columns if re.fullmatch(pattern, str(column))]
        for pattern in (rf"{kind}_s?[0-9]+", "fresh_[0-9]+", "test_s?[0-9]+")
    )
    if not decisions or not singles:
        raise InputError(
            f"{path} is no table: it needs columns of decisions, and then val_0, val_1, ... or test_s0, test_s1, ..."
        )
    tests = ["test_mean"] if "test_mean" in columns else tests
    try:
        trainings = numbers(rows, singles)
        fresh = numbers([{column: row[column] or "nan" for column in fresh} for row in rows], fresh)
        test = numbers(rows, tests).mean(1) if kind == "val" and tests else None
        timed = "seconds" in columns and all(row["seconds"] for row in rows)
        seconds = numbers(rows, ["seconds"])[:, 0] if timed else None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: every accuracy must be a number ({error})") from None
    if not np.isfinite(trainings).all() or np.isinf(fresh).any():
        raise InputError(f"{path}: every accuracy must be a finite number")
    if timed and not (np.isfinite(seconds).all() and (seconds >= 0).all()):
        raise InputError(f"{path}: seconds must be finite and not negative")
    scale = 100 if trainings.max() > 1 else 1
    choices = {d: sorted({row[d] for row in rows}, key=order) for d in decisions}
    actions = [tuple(choices[d].index(row[d]) for d in decisions) for row in rows]
    num_choices = tuple(len(choices[d]) for d in decisions)
    counts, all_networks = Counter(actions), product(*map(range, num_choices))
    if wrong := next((a for a in all_networks if counts[a] != 1), None):
        named = ", ".join(f"{d} {choices[d][i]}" for d, i in zip(decisions, wrong, strict=True))
        raise InputError(f"{path} needs each combination of its decisions once: {named} is there {counts[wrong]} times")
    names = tuple(d.rsplit("_", 1)[0] for d in decisions)
    shared = len(set(names)) < len(names) and len(set(zip(names, num_choices, strict=True))) == len(set(names))
    index = {a: i for i, a in enumerate(actions)}
    test = None if test is None else test / scale
    return Table(num_choices, names if shared else None, index, trainings / scale, fresh / scale, test, seconds)


def numbers(rows: list[dict], columns: list[str]) -> np.ndarray:
    """These columns (rows, columns)."""
    return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(len(rows), len(columns))


def order(choice: str) -> tuple:
    """Numbers by value, then words by the alphabet."""
    try:
        return 0, float(choice), choice
    except ValueError:
        return 1, 0.0, choice


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


# --- large spaces, another one for each repetition ------------------------------------------------------------------


@dataclass(frozen=True)
class Generated:
    """Sequences of decisions whose value is a sum of `tables` over pairs of decisions, or of each decision alone."""

    kind: str  # "pairs" or "singles"
    decisions: int = 30
    choices: int = 4
    tables: int = 30  # of pairs
    noise: float = 0.1  # of an evaluation, where the space has the standard deviation 1

    names = seconds = None
    has_finalists = judges_all = False
    source_of_true_accuracy = "the value without noise, in standard deviations of the space"

    @property
    def num_choices(self) -> tuple[int, ...]:
        return (self.choices,) * self.decisions

    @property
    def digest(self) -> str:
        return digest(repr(self).encode())

    def observed(self, seed: int) -> "Landscape":
        return Landscape(self, seed)

    def notes(self) -> list[str]:
        return []


class Landscape:
    """One generated space: normal random numbers, scaled to the mean 0 and the standard deviation 1 of all sequences."""

    def __init__(self, space: Generated, seed: int) -> None:
        random, (n, k) = np.random.default_rng((seed, 2)), (space.decisions, space.choices)
        self.space, self.seed, self.seen = space, seed, {}
        self.single, self.pair = np.zeros((n, k)), np.zeros((n, n, k, k))  # summed over decisions, and pairs of them
        if space.kind == "singles":
            self.single = random.normal(size=(n, k))
        for _ in range(space.tables if space.kind == "pairs" else 0):
            i, j = sorted(random.choice(n, 2, replace=False))
            self.pair[i, j] += random.normal(size=(k, k))
        # What a pair's table says of one decision alone goes there: all parts are then uncorrelated, with the mean 0.
        self.pair -= self.pair.mean((2, 3), keepdims=True)
        rows, columns = self.pair.mean(3), self.pair.mean(2)  # (n, n, k)
        self.pair -= rows[..., None] + columns[..., None, :]
        self.single += rows.sum(1) + columns.sum(0) - self.single.mean(1, keepdims=True)
        deviation = math.sqrt((self.single**2).mean(1).sum() + (self.pair**2).mean((2, 3)).sum())
        self.single, self.pair = self.single / deviation, self.pair / deviation
        self.maximum = float(self.single.max(1).sum()) if space.kind == "singles" else None
        self.pairs = np.argwhere(self.pair.any((2, 3))).T  # (2, pairs)

    def value(self, actions: Actions) -> float:
        """Without noise."""
        a, (i, j) = np.array(actions), self.pairs
        return float(self.single[np.arange(len(a)), a].sum() + self.pair[i, j, a[i], a[j]].sum())

    def __call__(self, actions: Actions) -> float:
        if actions not in self.seen:
            noise = np.random.default_rng((self.seed, 3, *actions)).normal() * self.space.noise
            self.seen[actions] = self.value(actions) + noise
        return self.seen[actions]

    def entry(self, actions: Actions) -> float:
        return round(self.value(actions), 4)
