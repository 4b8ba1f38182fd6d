"""REINFORCE (paper §3.2) with an entropy bonus, on all children that are remembered.

    repeat: sample m new sequences a of actions from the policy pi, and evaluate them; R is the rank of a's reward
            theta <- a step of Adam along the mean, over the remembered a, of (R - tau log pi(a) - b) grad log pi(a)
            b     <- decay * b + (1 - decay) * mean of R - tau log pi(a)

With tau = 0, on the batch alone, and with the reward itself as R, this is the paper's update (`--paper`).

With tau > 0 exploration is rewarded: the mean of -log pi(a) estimates the policy's entropy, tau is what it is worth.

On all that is remembered, whichever policy drew a, the step lowers a squared error: the mean of
(R - tau log pi(a) - b)^2 / (2 tau), b and tau held constant. It is 0 if pi(a) = exp((R - b) / tau) for every a: the
best are the most probable, and nothing is forgotten. It is the log-variance or trajectory-balance loss, or path
consistency (Richter et al. 2020, Malkin et al. 2022, Nachum et al. 2017).

    search = PolicyGradient(Controller(num_choices=[4, 4, 4]))
    for metrics in search.search(evaluate=sum, num_children=40):  # any function from actions to a reward
        print(metrics)
    print(search.best)
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby, product

import torch

from controller import Controller, Rollout
from utils import one_thread

Actions = tuple[int, ...]  # one sequence: the index of the choice made for each token
NUM_SAMPLES_DRAWN = 200  # sequences that one call of the controller samples
MAX_ENUMERATED = 2**15  # spaces of more sequences are never gone through one by one
PAPER_SETTINGS = {  # the paper's update (§3.2, §4.1)
    "children_per_update": 8,
    "update_lag": 0,
    "lr": 0.0006,
    "entropy_weight": 0.0,
    "reward_scale": "none",
    "replay": 0,
}


@dataclass(eq=False)
class PolicyGradient:
    """Search with the policy gradient: `ask()` for what is to be evaluated, `tell()` the rewards."""

    controller: Controller
    _: KW_ONLY
    children_per_update: int = 2  # m (§3.2)
    update_lag: int = 4  # updates between a batch's sampling and its own; this number + 1 batches are pending
    lr: float = 0.02  # Adam's learning rate; with replay divided by sqrt(1 + children / c), see `total_choices`
    entropy_weight: float = 0.7  # what a uniform policy's entropy is worth, in standard deviations of R
    baseline_decay: float = 0.5  # decay of the moving average b, per update
    reward_scale: str = "rank"  # R is the reward's rank among those so far, -1 worst to 1 best; "none": the reward
    replay: int = 1000  # number of latest children that an update learns from
    # 0: as in §3.2. Only the batch, where repeats count; the rate is constant, and small spaces are not enumerated.
    patience: int = 2000  # samples in a row with nothing new after which a large space counts as searched
    num_steps: Callable[[int], int | None] = lambda children: None  # children asked for -> steps to sample; None: all
    allowed: Callable[[Actions], bool] | None = None  # other sequences are left out, without using budget
    seed: int = 0  # seed of the sampling

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=self.lr)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.rollout: Rollout | None = None  # the latest NUM_SAMPLES_DRAWN samples of the policy
        self.asked: dict[Actions, int] = {}  # what had to be evaluated, numbered in order
        self.refused: set[Actions] = set()  # what is not allowed
        self.pending: deque[list[Actions]] = deque()  # what `ask` sampled and was not told yet, the oldest first
        self.reward_of: dict[Actions, float] = {}  # what was told, in order; -inf: failed
        self.baseline = 0.0  # b
        self.updates = 0
        self.samples = 0  # number of sequences in all batches that were told
        self.samples_without_new = 0  # number of latest samples in a row that were known or not allowed

    def search(self, evaluate: Callable[[Actions], float], num_children: int) -> Iterator[dict]:
        """Yield each update's metrics until `num_children` sequences are evaluated, or `stopped_early` says why not."""
        batches: deque[list[Actions]] = deque()
        while batches or not self.done(num_children):
            while len(batches) <= self.update_lag and not self.done(num_children):
                batches.append(self.ask(num_children))
            batch = batches.popleft()
            yield self.tell(batch, [evaluate(actions) for actions in batch])

    @one_thread()
    def ask(self, num_children: float = math.inf) -> list[Actions]:
        """Sample; returns the next batch: what must be evaluated, is allowed and was never asked for before.

        Cut where `num_children` have been asked for. To evaluate in parallel, first ask for `update_lag` + 1 batches.
        """
        batch: list[Actions] = []  # what must be evaluated
        sampled: list[Actions] = []  # the batch, and without replay also what was known
        for actions in self.candidates():
            if len(sampled) == self.children_per_update or len(self.asked) >= num_children:
                break
            self.samples_without_new += 1
            if actions not in self.asked and self.is_allowed(actions):
                self.samples_without_new = 0
                self.asked[actions] = len(self.asked)
                batch.append(actions)
                sampled.append(actions)
            elif actions in self.asked and not self.replay:  # in the paper a known sequence is learned from again
                sampled.append(actions)
        self.pending.append(sampled)
        return batch

    def candidates(self) -> Iterator[Actions]:
        """Samples of the policy while they bring anything new; then, with replay, what is left of a small space."""
        num_steps = self.num_steps(len(self.asked))
        choices = self.controller.token_choices(num_steps)
        space_size = math.prod(choices)
        if not self.replay:
            yield from self.sample(num_steps, self.patience)
            return
        yield from self.sample(num_steps, min(self.patience, space_size))
        if space_size <= MAX_ENUMERATED:
            yield from self.sample_unknown(choices)

    def sample(self, num_steps: int | None, patience: int) -> Iterator[Actions]:
        """Samples of the policy, known ones too, until `patience` of them in a row were nothing new."""
        while self.samples_without_new < patience:
            with torch.no_grad():
                self.rollout = self.controller(None, NUM_SAMPLES_DRAWN, self.generator, num_steps)
            yield from map(tuple, self.rollout.actions.tolist())

    def sample_unknown(self, choices: Sequence[int]) -> Iterator[Actions]:
        """All sequences that are new and allowed, drawn from the policy without replacement."""
        every = product(*map(range, choices))
        unknown = [actions for actions in every if actions not in self.asked and self.is_allowed(actions)]
        if not unknown:
            return
        log_prob = self.controller(torch.tensor(unknown)).log_prob.sum(1).detach()  # (n,)
        weights = log_prob.softmax(0).clamp(1e-300)  # (n,), positive: multinomial draws nothing of weight 0
        for i in weights.multinomial(len(unknown), generator=self.generator).tolist():
            yield unknown[i]

    def is_allowed(self, actions: Actions) -> bool:
        """Whether a sequence may be evaluated; what was refused is remembered."""
        if actions not in self.refused and self.allowed is not None and not self.allowed(actions):
            self.refused.add(actions)
        return actions not in self.refused

    @one_thread()
    def tell(self, batch: Sequence[Actions], rewards: Sequence[float]) -> dict:
        """Learn from the rewards of the oldest pending batch, on any real scale; returns the update's metrics.

        -inf says that an evaluation failed. ValueError for NaN, and for another batch.
        """
        self.check_batch(batch, rewards)
        sampled = self.pending.popleft()
        for actions, reward in zip(batch, rewards, strict=True):
            self.reward_of[tuple(actions)] = float(reward)
        sampled_rewards = [self.reward_of[actions] for actions in sampled]
        finite_rewards = [reward for reward in sampled_rewards if reward > -math.inf]
        self.samples += len(sampled)
        metrics = {
            "update": self.updates,  # number of this update, from 0
            "samples": self.samples,  # sequences sampled so far, repeats counted
            "children": len(self.reward_of),  # distinct sequences told so far
            "reward": sum(finite_rewards) / (len(finite_rewards) or 1),  # mean of this batch, without what failed
            "best_reward": self.best[1],  # highest reward so far
            "baseline": self.baseline,  # b before this update
            "entropy": self.rollout.entropy.sum(1).mean().item(),  # nats, of the policy, by its latest samples
        }
        self.updates += 1
        remembered = list(self.reward_of)[-self.replay :] if self.replay else sampled
        metrics["loss"] = self.update(remembered) if remembered else 0.0
        return metrics

    def check_batch(self, batch: Sequence[Actions], rewards: Sequence[float]) -> None:
        """ValueError if these are not the oldest pending batch and its rewards."""
        sampled = self.pending[0] if self.pending else []
        expected = [actions for actions in dict.fromkeys(sampled) if actions not in self.reward_of]
        if not self.pending or list(map(tuple, batch)) != expected or len(rewards) != len(expected):
            raise ValueError("tell() takes the oldest batch that was asked for and not told, and all its rewards")
        if not all(reward < math.inf for reward in rewards):
            raise ValueError(f"rewards must be numbers, or -inf for what failed, not {rewards}")

    def update(self, remembered: Sequence[Actions]) -> float:
        """One step of Adam; without replay it is REINFORCE (§3.2) with an entropy bonus; returns the loss."""
        log_prob, tau = self.score(remembered)  # (n,), (n,)
        R = self.scaled([self.reward_of[actions] for actions in remembered])  # (n,)

        loss = -((R - tau * log_prob - self.baseline).detach() * log_prob).mean()

        if self.replay:  # the rate falls as children accumulate: one noisy reward shall move less
            self.optimizer.param_groups[0]["lr"] = self.lr / math.sqrt(1 + len(self.reward_of) / self.total_choices)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        mean = (R - tau * log_prob).mean().item()
        self.baseline = self.baseline_decay * self.baseline + (1 - self.baseline_decay) * mean
        return loss.item()

    def score(self, batch: Sequence[Actions]) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi (n,) and tau (n,) of sequences in any order, which may differ in length.

        tau = entropy_weight * std(R) / log N, where N is the number of sequences that are as long.
        """
        runs = [list(same_length) for _, same_length in groupby(batch, key=len)]  # in a row, so that the order stays
        log_prob = torch.cat([self.controller(torch.tensor(run)).log_prob.sum(1) for run in runs])  # a run at once
        choices = [self.controller.token_choices()[: len(actions)] for actions in batch]
        log_n = [sum(map(math.log, each)) or 1.0 for each in choices]  # 1 where there is one sequence only
        spread = self.scaled(self.reward_of.values()).std(correction=0)
        return log_prob, self.entropy_weight * spread / log_prob.new_tensor(log_n)

    def scaled(self, rewards: Collection[float]) -> torch.Tensor:
        """R (n,) of these rewards: their ranks among all so far, or the rewards; what failed is the worst."""
        chosen = torch.tensor(list(rewards), dtype=torch.float64)
        known = torch.tensor(list(self.reward_of.values()), dtype=torch.float64)
        if self.reward_scale == "none":
            finite = known[known.isfinite()]
            return chosen.clamp(min=finite.min() if len(finite) else 0)
        ordered = known.sort().values
        num_below = torch.searchsorted(ordered, chosen)
        num_up_to = torch.searchsorted(ordered, chosen, right=True)
        rank = (num_below + num_up_to).double() / 2  # the middle of the ranks of equal rewards
        return 2 * rank / len(ordered) - 1

    @torch.no_grad()
    def ranking(self, rewards: dict[Actions, Sequence[float]]) -> list[Actions]:
        """These sequences, the best first: by (R of their mean reward) + w tau log pi, the policy's estimate of R - b.

        The weight w = min(1, n / 4c) grows with the n children learned from; c are the choices of all tokens added up.
        """
        log_prob, tau = self.score(list(rewards))
        R = self.scaled([sum(some) / len(some) for some in rewards.values()])
        value = R + self.trust * tau * log_prob
        return [list(rewards)[i] for i in value.argsort(descending=True, stable=True)]

    @property
    def trust(self) -> float:
        """The weight of the policy's estimate in the ranking, from 0 to 1."""
        return min(1.0, len(self.reward_of) / (4 * self.total_choices))

    @property
    def total_choices(self) -> int:
        """c, the choices of all tokens added up, of the present depth."""
        return sum(self.controller.token_choices(self.num_steps(len(self.asked))))

    def done(self, num_children: int) -> bool:
        """Whether nothing more is to be asked for."""
        return len(self.asked) >= num_children or self.stopped_early is not None

    @property
    def best(self) -> tuple[Actions, float]:
        """The sequence with the highest reward, of equal ones the earliest, and that reward."""
        return max(self.reward_of.items(), key=lambda item: item[1], default=((), -math.inf))

    @property
    def stopped_early(self) -> str | None:
        """Why sampling ended before the budget was spent, or None."""
        refused = len(self.refused)
        choices = self.controller.token_choices(self.num_steps(len(self.asked)))
        num_known = sum(len(actions) == len(choices) for actions in (*self.asked, *self.refused))
        if num_known == math.prod(choices):
            left_out = f", {refused} are not allowed" if refused else ""
            return f"the space is exhausted: all {len(self.asked)} architectures were evaluated{left_out}"
        if self.samples_without_new >= self.patience:
            what = "that is allowed" if refused else "new"
            return f"{self.patience} samples of the policy in a row were nothing {what}"
        return None
