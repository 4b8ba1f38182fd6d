"""The rivals of the controller: each has `ask()` for a network and `tell(network, reward)`."""

from collections import deque

import numpy as np

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
        sampler = getattr(optuna.samplers, f"{sampler}Sampler")(seed=seed, **settings)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> Actions:
        self.trials.append(self.study.ask())
        return tuple(self.trials[-1].suggest_categorical(str(t), range(n)) for t, n in enumerate(self.num_choices))

    def tell(self, actions: Actions, reward: float) -> None:
        self.study.tell(self.trials.popleft(), reward)
