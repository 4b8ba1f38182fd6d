"""The controller: an LSTM that writes an architecture down token by token (paper §3.1).

It knows nothing of networks, only how many choices there are at each step:

    controller = Controller(num_choices=[3, 3, 5])
    actions, log_prob, entropy = controller(num_samples=8)      # sample
    _, log_prob, entropy = controller(actions)                  # score the same actions again
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical


class Rollout(NamedTuple):
    actions: Tensor  # (n, T) int64, the index of the choice made for each token
    log_prob: Tensor  # (n, T) log pi(a_t | a_<t)
    entropy: Tensor  # (n, T) entropy of pi(. | a_<t), in nats


ANCHOR = 0  # in the place of a number of choices: an anchor point


class Controller(nn.Module):
    """Autoregressive LSTM policy over sequences of T discrete choices (§3.1), with anchor points (§3.3).

    Steps of the same name share their output head and their embedding, so that depth can grow; without `names` every
    step has its own. A step of `ANCHOR` choices, an anchor point, ends a layer of the paper's space: a binary token for
    each earlier anchor point says whether that layer is an input of this one.
    """

    def __init__(
        self, num_choices: Sequence[int], names: Sequence[str] | None = None, hidden_size: int = 64, num_layers: int = 1
    ) -> None:
        super().__init__()
        self.num_choices = tuple(num_choices)
        self.names = tuple(names) if names is not None else tuple(f"step_{t}" for t in range(len(self.num_choices)))
        if not self.num_choices or len(self.names) != len(self.num_choices):
            raise ValueError("num_choices and names need the same length, at least 1")
        choices_of = dict(zip(self.names, self.num_choices, strict=True))
        if self.num_choices != tuple(choices_of[name] for name in self.names):
            raise ValueError("steps of the same name must have the same number of choices")
        choices_of = {name: n for name, n in choices_of.items() if n != ANCHOR}
        self.first_input = nn.Parameter(torch.empty(hidden_size))
        self.cells = nn.ModuleList(nn.LSTMCell(hidden_size, hidden_size) for _ in range(num_layers))
        self.embeddings = nn.ModuleDict({name: nn.Embedding(n, hidden_size) for name, n in choices_of.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, n) for name, n in choices_of.items()})
        if ANCHOR in self.num_choices:
            self.w_prev, self.w_curr = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(2))
            self.v = nn.Linear(hidden_size, 1, bias=False)
        self.double()  # rounding must not flip a sampled token; now, so that the weights below are drawn in float64
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08)  # §4.1; the first policy is nearly uniform

    def token_choices(self, num_steps: int | None = None) -> tuple[int, ...]:
        """The number of choices of each of the T tokens of the first steps, those of an anchor point written out."""
        tokens, anchors = [], 0
        for n in self.num_choices[:num_steps]:
            tokens += [n] if n != ANCHOR else [2] * anchors
            anchors += n == ANCHOR
        return tuple(tokens)

    def forward(
        self,
        actions: Tensor | None = None,
        num_samples: int = 1,
        generator: Generator | None = None,
        num_steps: int | None = None,
    ) -> Rollout:
        """Score `actions` (n, T), or sample `num_samples` sequences over the first `num_steps`: one path for both."""
        n = num_samples if actions is None else len(actions)
        x = self.first_input.expand(n, -1)  # (n, H)
        states = [(torch.zeros_like(x), torch.zeros_like(x)) for _ in self.cells]
        anchors = x.new_zeros(n, 0, x.shape[1])  # (n, anchor points so far, H)
        rollout = []
        for name, choices in list(zip(self.names, self.num_choices, strict=True))[:num_steps]:
            if actions is not None and actions.shape[1] == 0:
                break
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]  # (n, H)
            if choices == ANCHOR:
                score = self.v(torch.tanh(self.w_prev(anchors) + self.w_curr(x)[:, None]))  # (n, k, 1)
                logits = torch.cat([torch.zeros_like(score), score], 2)  # (n, k, 2): sigmoid(score) to choose 1
            else:
                logits = self.heads[name](x)[:, None]  # (n, 1, choices)
            k = logits.shape[1]  # tokens of this step: none at the first anchor point, which Categorical can't check
            policy = Categorical(logits=logits, validate_args=k > 0)
            if actions is None:
                action = torch.multinomial(policy.probs.flatten(0, 1), 1, generator=generator).view(n, k)
            else:
                action, actions = actions[:, :k], actions[:, k:]
            rollout.append((action, policy.log_prob(action), policy.entropy()))
            if choices == ANCHOR:  # the next input is the mean of the chosen anchor points' states
                mean = (action[:, :, None] * anchors).sum(1) / action.sum(1, keepdim=True).clamp(min=1)
                anchors, x = torch.cat([anchors, x[:, None]], 1), mean
            else:
                x = self.embeddings[name](action[:, 0])  # the chosen token is the next input
        return Rollout(*(torch.cat(steps, 1) for steps in zip(*rollout, strict=True)))
