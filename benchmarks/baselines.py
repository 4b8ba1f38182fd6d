"""The baseline methods that the controller is compared with: each has `ask()` for a network and `tell(network, reward)`."""

import importlib
import operator
import re
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils import InputError

Actions = tuple[int, ...]


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

    While the last neighbours are pending, random networks are asked for.
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
        sampler = getattr(optuna.samplers, f"{sampler}Sampler")(seed=seed, **settings)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> Actions:
        self.trials.append(self.study.ask())
        return tuple(self.trials[-1].suggest_categorical(str(t), range(n)) for t, n in enumerate(self.num_choices))

    def tell(self, actions: Actions, reward: float) -> None:
        self.study.tell(self.trials.popleft(), reward)


class OwnMethod:
    """A class of the reader's, named `module:Class`; InputError for whatever is wrong with it or goes wrong in it."""

    def __init__(self, num_choices: tuple[int, ...], seed: int, name: str) -> None:
        self.num_choices, self.name = num_choices, name
        self.searcher = self.call(import_class(name), num_choices, seed)

    def ask(self) -> Actions:
        answer = self.call(self.searcher.ask)
        try:
            actions = tuple(map(operator.index, answer))  # indices of NumPy, too
        except TypeError:
            actions = ()
        in_range = (0 <= action < n for action, n in zip(actions, self.num_choices, strict=False))
        if len(actions) != len(self.num_choices) or not all(in_range):
            raise InputError(
                f"{self.name}: ask() must return {len(self.num_choices)} indices, from 0 to one less than "
                f"{self.num_choices}, not {answer!r}"
            )
        return actions

    def tell(self, actions: Actions, reward: float) -> None:
        self.call(self.searcher.tell, actions, reward)

    def call(self, function: Callable, *args):
        """What the function returns; an error in it becomes one line, which names its place."""
        try:
            return function(*args)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise InputError(f"{self.name} failed in {where}: {type(error).__name__}: {said}") from None


def import_class(name: str) -> type:
    """The class that `module:Class` names; InputError where there is none with `ask` and `tell`."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise InputError(f"--method takes a module and a class, as in my_module:MyClass, not {name!r}")
    module_name, class_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"--method {name}: cannot import {module_name} ({said}); name a Python module in the current folder, "
            "without .py, or an installed one"
        ) from None
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise InputError(f"--method {name}: {module_name} has no class {class_name}")
    if missing := [method for method in ("ask", "tell") if not callable(getattr(found, method, None))]:
        raise InputError(f"--method {name}: the class needs {' and '.join(missing)}; docs/benchmark.md shows one")
    return found
