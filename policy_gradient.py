"""REINFORCE: rewards become advantages, advantages become a better controller (paper §3.2).

The search works with any function from actions to a reward:

    controller = Controller(num_choices=[4, 4, 4])
    for metrics in PolicyGradient(controller, evaluate=lambda actions: sum(actions)).search(num_children=40):
        print(metrics)
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import torch
from torch import Tensor

from controller import Controller

Actions = tuple[int, ...]


class PolicyGradient:
    """Search with the policy gradient; `evaluate` is called once per distinct action sequence, in order of sampling.

    `evaluate(actions)` returns a reward on any real scale, or a `Future` of one. Settings:
    `children_per_update` (m in §3.2, duplicates included); `update_lag` (a batch is sampled from the policy as it was
    `update_lag` updates earlier, so that `update_lag + 1` batches are under way); `lr` of Adam; `entropy_weight`
    (of the summed entropy in nats; not in the paper); `baseline_decay` of the moving average; `reward_scale`
    (`rank`: a reward becomes its rank among all met so far, -1 worst to 1 best; `none`: as it is); `patience`
    (batches in a row without a new sequence after which the policy counts as collapsed); `seed` of the sampling.
    """

    def __init__(
        self,
        controller: Controller,
        evaluate: Callable[[Actions], float | Future],
        *,
        children_per_update: int = 5,
        update_lag: int = 3,
        lr: float = 0.01,
        entropy_weight: float = 0.1,
        baseline_decay: float = 0.9,
        reward_scale: str = "rank",
        patience: int = 200,
        seed: int = 0,
    ) -> None:
        self.controller = controller
        self.evaluate = evaluate
        self.children_per_update = children_per_update
        self.update_lag = update_lag
        self.entropy_weight = entropy_weight
        self.baseline_decay = baseline_decay
        self.reward_scale = reward_scale
        self.patience = patience
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=lr)
        self.generator = torch.Generator().manual_seed(seed)

        self.results: dict[Actions, float | Future] = {}  # every distinct sequence sampled so far
        self.rewards: list[float] = []  # as met in the updates, duplicates included
        self.average, self.average_weight = 0.0, 0.0  # of the rewards of earlier batches
        self.batches = 0  # sampled so far
        self.batches_without_new = 0
        self.updates = 0

    def search(self, num_children: int) -> Iterator[dict]:
        """Yield the metrics of each update until `num_children` distinct children have been evaluated.

        Ends earlier when the space is exhausted or the policy has collapsed; `stopped_early` then says so.
        """
        under_way: deque[tuple[Tensor, list]] = deque()
        while True:
            while len(under_way) <= self.update_lag and not self._finished(num_children):
                under_way.append(self._sample_batch(num_children))
            if not under_way:
                return
            actions, results = under_way.popleft()
            rewards = [result.result() if isinstance(result, Future) else result for result in results]
            yield self.update(actions, rewards)

    @property
    def stopped_early(self) -> str | None:
        """Why sampling ended before the budget was spent, or None."""
        if len(self.results) == math.prod(self.controller.num_choices):
            return f"the space is exhausted: all {len(self.results)} architectures were evaluated"
        if self.batches_without_new >= self.patience:
            return f"the policy has collapsed: {self.patience} updates in a row sampled nothing new"
        return None

    def _finished(self, num_children: int) -> bool:
        return len(self.results) >= num_children or self.stopped_early is not None

    def _sample_batch(self, num_children: int) -> tuple[Tensor, list]:
        """Sample m action sequences and start evaluating the new ones; cut where the budget is met."""
        with torch.no_grad():
            actions = self.controller(num_samples=self.children_per_update, generator=self.generator).actions  # (m, T)
        known, results = len(self.results), []
        for sequence in map(tuple, actions.tolist()):
            if sequence not in self.results:
                self.results[sequence] = self.evaluate(sequence)
            results.append(self.results[sequence])
            if len(self.results) == num_children:
                break
        self.batches += 1
        self.batches_without_new = 0 if len(self.results) > known else self.batches_without_new + 1
        return actions[: len(results)], results

    def update(self, actions: Tensor, rewards: list[float]) -> dict:
        """One REINFORCE step on `actions` (m, T) and their m rewards; returns its metrics."""
        advantage, baseline = self.advantage(rewards)  # (m,)
        loss, entropy = self.loss(actions, advantage)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return {
            "update": self.updates - 1,
            "samples": len(self.rewards),
            "reward": sum(rewards) / len(rewards),
            "best_reward": max(self.rewards),
            "baseline": baseline,
            "advantage": advantage.mean().item(),
            "entropy": entropy.item(),
            "loss": loss.item(),
        }

    def loss(self, actions: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """REINFORCE loss with entropy bonus (§3.2; the bonus is not in the paper) and the mean entropy in nats."""
        _, log_prob, entropy = self.controller(actions)  # (m, T), (m, T)
        return -(advantage * log_prob.sum(1)).mean() - self.entropy_weight * entropy.sum(1).mean(), entropy.sum(
            1
        ).mean()

    def advantage(self, rewards: list[float]) -> tuple[Tensor, float]:
        """R - b of a batch (m,), on the chosen scale, and the b it was taken with; then the batch enters b.

        b is the moving average of all *earlier* rewards, weighted like an exponential one from its first batch on;
        the first batch of all has none, and is compared with the middle of the scale.
        """
        self.rewards.extend(rewards)
        baseline = self.average / self.average_weight if self.average_weight else 0.0
        *scaled, scaled_baseline = self._scale([*rewards, baseline])
        advantage = torch.stack(scaled) - (scaled_baseline if self.average_weight else 0.0)  # (m,)
        decay = self.baseline_decay
        self.average = decay * self.average + (1 - decay) * sum(rewards) / len(rewards)
        self.average_weight = decay * self.average_weight + (1 - decay)
        return advantage, baseline

    def _scale(self, rewards: list[float]) -> Tensor:
        """Rewards as the gradient sees them: as they are, or the rank of each among all met so far, -1 to 1."""
        values = torch.tensor(rewards, dtype=self.controller.first_input.dtype)
        if self.reward_scale == "none":
            return values
        met = torch.tensor(self.rewards, dtype=values.dtype)
        below = (met[None, :] < values[:, None]).sum(1)  # (m,)
        above = (met[None, :] > values[:, None]).sum(1)
        return (below - above) / len(met)  # ties in the middle
