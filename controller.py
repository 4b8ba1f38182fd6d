"""The controller: an LSTM that writes an architecture down token by token (paper §3.1).

It knows nothing of networks, only how many choices there are at each step:

    controller = Controller(num_choices=[3, 3, 5])
    actions, log_prob, entropy = controller(num_samples=8)      # sample
    _, log_prob, entropy = controller(actions)                  # score the same actions again
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical


class Rollout(NamedTuple):
    actions: Tensor  # (n, T) int64, the index of the choice made for each token
    log_prob: Tensor  # (n, T) log pi(a_t | a_<t)
    entropy: Tensor  # (n, T) entropy of pi(. | a_<t), in nats


ANCHOR = 0  # stands in `num_choices` for a step that is an anchor point: its tokens are yes or no, see Controller


class Controller(nn.Module):
    """Autoregressive LSTM policy over sequences of T discrete choices (§3.1), with anchor points (§3.3).

    A step writes one token. Only an anchor point, a step whose number of choices is `ANCHOR`, writes a binary token for
    each earlier anchor point: it ends a layer of the paper's space, and they say which earlier layers are its inputs.
    Steps of the same name share their output head and their embedding, so that depth can grow; without `names` every
    step has its own. ValueError if the names don't fit.
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
        is_anchor = [choices == ANCHOR for choices in self.num_choices]
        # The number of tokens that each step writes: at an anchor point one for each earlier anchor point.
        self.num_tokens = [is_anchor[:t].count(True) if is_anchor[t] else 1 for t in range(len(is_anchor))]
        with_head = {name: choices for name, choices in choices_of.items() if choices != ANCHOR}
        self.first_input = nn.Parameter(torch.empty(hidden_size))
        self.cells = nn.ModuleList(nn.LSTMCell(hidden_size, hidden_size) for _ in range(num_layers))
        self.embeddings = nn.ModuleDict({name: nn.Embedding(n, hidden_size) for name, n in with_head.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, n) for name, n in with_head.items()})
        if any(is_anchor):
            self.w_prev = nn.Linear(hidden_size, hidden_size, bias=False)
            self.w_curr = nn.Linear(hidden_size, hidden_size, bias=False)
            self.v = nn.Linear(hidden_size, 1, bias=False)
        self.double()  # rounding must not flip a sampled token; now, so that the weights below are drawn in float64
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08)  # §4.1; the first policy is nearly uniform

    def token_choices(self, num_steps: int | None = None) -> tuple[int, ...]:
        """The number of choices of each of the T tokens that the first steps write, 2 for those of an anchor point."""
        choices_of_tokens = []
        for choices, num_tokens in list(zip(self.num_choices, self.num_tokens, strict=True))[:num_steps]:
            choices_of_tokens += [2] * num_tokens if choices == ANCHOR else [choices]
        return tuple(choices_of_tokens)

    def steps_of(self, num_tokens: int) -> int:
        """The number of steps that write so many tokens; ValueError if the last token is not the last of a step."""
        written = list(accumulate(self.num_tokens))  # tokens after each step
        if num_tokens not in written:
            raise ValueError(f"sequences of {num_tokens} tokens do not end where a step ends")
        return written.index(num_tokens) + 1

    def forward(
        self,
        actions: Tensor | None = None,
        num_samples: int = 1,
        generator: Generator | None = None,
        num_steps: int | None = None,
    ) -> Rollout:
        """Score `actions` (n, T), or sample `num_samples` sequences over the first `num_steps`: one path for both."""
        n = num_samples
        if actions is not None:
            n = len(actions)
            num_steps = self.steps_of(actions.shape[1])
        x = self.first_input.expand(n, -1)  # (n, H), the input of the next step
        states = [(torch.zeros_like(x), torch.zeros_like(x)) for _ in self.cells]
        anchors = x.new_zeros(n, 0, x.shape[1])  # (n, k, H), the LSTM's outputs at the k anchor points so far
        first = 0  # the place of the step's first token in the sequence
        written = []  # each step's part of the rollout
        for name, choices, k in list(zip(self.names, self.num_choices, self.num_tokens, strict=True))[:num_steps]:
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]  # (n, H)
            is_anchor = choices == ANCHOR
            # (n, k, choices), or at an anchor point (n, k, 2)
            logits = self.skip_logits(x, anchors) if is_anchor else self.heads[name](x)[:, None]
            policy = Categorical(logits=logits, validate_args=k > 0)  # it can't check the first anchor point's 0 tokens
            if actions is None:
                action = torch.multinomial(policy.probs.flatten(0, 1), 1, generator=generator).view(n, k)
            else:
                action = actions[:, first : first + k]
            first += k
            written.append((action, policy.log_prob(action), policy.entropy()))
            if is_anchor:
                next_input = mean_of_chosen(anchors, action)
                anchors = torch.cat([anchors, x[:, None]], 1)
                x = next_input
            else:
                x = self.embeddings[name](action[:, 0])  # the chosen token is the next input
        chosen, log_probs, entropies = zip(*written, strict=True)
        return Rollout(torch.cat(chosen, 1), torch.cat(log_probs, 1), torch.cat(entropies, 1))

    def skip_logits(self, x: Tensor, anchors: Tensor) -> Tensor:
        """Logits (n, k, 2) of no and yes for each of k earlier anchor points; P(yes) is the sigmoid in §3.3."""
        score = self.v(torch.tanh(self.w_prev(anchors) + self.w_curr(x)[:, None]))  # (n, k, 1)
        return torch.cat([torch.zeros_like(score), score], 2)


def mean_of_chosen(anchors: Tensor, chosen: Tensor) -> Tensor:
    """The mean (n, H) of the anchor points (n, k, H) chosen by 1 among 0 and 1 (n, k): the next input; 0 of none."""
    return (chosen[:, :, None] * anchors).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)
