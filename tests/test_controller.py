"""The controller against the paper's equations written out, and against enumeration of small spaces."""

import itertools
import re

import pytest
import torch

from controller import ANCHOR, Controller

NUM_CHOICES = (3, 2, 4)
WITH_ANCHORS = (3, ANCHOR, 2, ANCHOR, 2, ANCHOR, 2)  # tokens: 3, 2, skip from 1, 2, skips from 1 and 2, 2


@pytest.fixture(
    params=[(NUM_CHOICES, 1), (NUM_CHOICES, 2), (WITH_ANCHORS, 1), (WITH_ANCHORS, 2)],
    ids=["one", "two layers", "anchors", "anchors, two layers"],
)
def controller(request) -> Controller:
    torch.manual_seed(0)
    num_choices, num_layers = request.param
    controller = Controller(num_choices, hidden_size=8, num_layers=num_layers).double()
    for parameter in controller.parameters():  # far from uniform, or every test would be easy
        torch.nn.init.normal_(parameter)
    return controller


def all_actions(controller: Controller) -> torch.Tensor:
    """Every sequence there is, (product of the choices, T)."""
    return torch.tensor(list(itertools.product(*map(range, controller.token_choices()))))


def written_out(controller: Controller, actions=None, generator=None) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """One sequence's tokens, log-probabilities (T,) and entropies (T,) from the equations, token by token.

    Scores `actions`, or samples them with `generator`.
    """
    hidden = [torch.zeros_like(controller.first_input) for _ in controller.cells]
    memory = list(hidden)
    x, anchors, tokens, log_prob, entropy = controller.first_input, [], [], [], []
    for name, choices in zip(controller.names, controller.num_choices, strict=True):
        for layer, cell in enumerate(controller.cells):
            gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ hidden[layer] + cell.bias_hh
            i, f, g, o = gates.chunk(4)  # the input, forget, cell and output gates
            memory[layer] = f.sigmoid() * memory[layer] + i.sigmoid() * g.tanh()
            x = hidden[layer] = o.sigmoid() * memory[layer].tanh()
        if choices == ANCHOR:
            w_prev, w_curr, v = controller.w_prev.weight, controller.w_curr.weight, controller.v.weight[0]
            scores = [v @ torch.tanh(w_prev @ earlier + w_curr @ x) for earlier in anchors]
            policies = [torch.stack([torch.sigmoid(-score), torch.sigmoid(score)]) for score in scores]
        else:
            weights = (controller.heads[name].weight @ x + controller.heads[name].bias).exp()
            policies = [weights / weights.sum()]
        if actions is not None:
            step = actions[len(tokens) : len(tokens) + len(policies)]
        elif policies:
            step = torch.multinomial(torch.stack(policies), 1, generator=generator).flatten().tolist()
        else:
            step = []
        log_prob += [policy[token].log() for policy, token in zip(policies, step, strict=True)]
        entropy += [-(policy * policy.log()).sum() for policy in policies]
        tokens += step
        if choices == ANCHOR:
            chosen = [state for state, token in zip(anchors, step, strict=True) if token == 1]
            anchors.append(x)
            x = sum(chosen) / len(chosen) if chosen else torch.zeros_like(x)
        else:
            x = controller.embeddings[name].weight[step[0]]
    return tokens, torch.stack(log_prob), torch.stack(entropy)


@torch.no_grad()
def test_every_sequence_is_scored_as_by_the_equations(controller):
    sequences = all_actions(controller)
    _, log_prob, entropy = controller(sequences)
    assert log_prob.shape == entropy.shape == sequences.shape
    for n, actions in enumerate(sequences.tolist()):
        _, expected_log_prob, expected_entropy = written_out(controller, actions)
        torch.testing.assert_close(log_prob[n], expected_log_prob, rtol=0, atol=1e-12)
        torch.testing.assert_close(entropy[n], expected_entropy, rtol=0, atol=1e-12)


def test_the_mean_of_the_chosen_anchor_points_is_the_next_input():
    """0 to 4 of four earlier layers are chosen, in two LSTM layers; steps of one name share their weights."""
    torch.manual_seed(1)
    controller = Controller([3, ANCHOR] * 5 + [3], ["a", "anchor"] * 5 + ["a"], hidden_size=6, num_layers=2).double()
    for parameter in controller.parameters():
        torch.nn.init.normal_(parameter)
    assert controller.token_choices() == (3, 3, 2, 3, 2, 2, 3, 2, 2, 2, 3, 2, 2, 2, 2, 3)
    for skips in itertools.product(range(2), repeat=4):
        actions = [2, 1, 1, 0, 1, 1, 2, 1, 0, 1, 1, *skips, 2]
        log_prob = controller(torch.tensor([actions])).log_prob[0]
        torch.testing.assert_close(log_prob, written_out(controller, actions)[1], rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_the_equations(controller):
    actions = [n - 1 for n in controller.token_choices()]
    parameters = list(controller.parameters())
    _, log_prob, entropy = controller(torch.tensor([actions]))
    got = torch.autograd.grad(log_prob.sum() + 0.3 * entropy.sum(), parameters, materialize_grads=True)
    _, log_prob, entropy = written_out(controller, actions)
    expected = torch.autograd.grad(log_prob.sum() + 0.3 * entropy.sum(), parameters, materialize_grads=True)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


@torch.no_grad()
def test_a_sample_is_drawn_from_the_generator_alone(controller):
    before = torch.get_rng_state()
    for seed in range(20):
        actions, log_prob, entropy = controller(generator=torch.Generator().manual_seed(seed))
        tokens, *expected = written_out(controller, generator=torch.Generator().manual_seed(seed))
        assert actions.tolist() == [tokens]  # one sample unless more are asked for
        torch.testing.assert_close([log_prob[0], entropy[0]], expected, rtol=0, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_impossible_action_is_refused(controller):
    for t, n in enumerate(controller.token_choices()):
        actions = torch.zeros(1, len(controller.token_choices()), dtype=torch.int64)
        actions[0, t] = n
        with pytest.raises(ValueError, match="value argument"):
            controller(actions)


@pytest.mark.parametrize("num_tokens", [0, 5, 7])
def test_a_sequence_that_ends_within_a_step_is_refused(num_tokens):
    """Steps write 1, 0, 1, 1, 1, 2 tokens; a longer sequence is refused, too, and a shorter one is a prefix."""
    controller = Controller([3, ANCHOR] * 3, names=["a", "anchor"] * 3, hidden_size=8)
    with pytest.raises(ValueError, match=f"^sequences of {num_tokens} tokens do not end where a step ends$"):
        controller(torch.zeros(2, num_tokens, dtype=torch.int64))
    for whole in (1, 2, 3, 4, 6):
        zeros = torch.zeros(2, whole, dtype=torch.int64)
        assert controller(zeros).log_prob.shape == (2, whole)


def test_the_weights_and_their_names():
    """64 hidden units in one LSTM layer and a head for each step, unless told otherwise."""
    shapes = {name: tuple(weight.shape) for name, weight in Controller([3, 0, 2, 0]).state_dict().items()}
    assert shapes == {
        "first_input": (64,),
        **{"cells.0.weight_ih": (256, 64), "cells.0.weight_hh": (256, 64)},
        **{"cells.0.bias_ih": (256,), "cells.0.bias_hh": (256,)},
        **{"embeddings.step_0.weight": (3, 64), "embeddings.step_2.weight": (2, 64)},
        **{"heads.step_0.weight": (3, 64), "heads.step_0.bias": (3,)},
        **{"heads.step_2.weight": (2, 64), "heads.step_2.bias": (2,)},
        **{"w_prev.weight": (64, 64), "w_curr.weight": (64, 64), "v.weight": (1, 64)},
    }
    assert Controller([3, 0, 2, 0]).token_choices() == (3, 2, 2)
    assert not hasattr(Controller([3, 2]), "v")
    deep = Controller([3], hidden_size=5, num_layers=3)
    assert [cell.weight_ih.shape for cell in deep.cells] == [(20, 5)] * 3


def test_every_weight_starts_uniform_between_minus_and_plus_0_08():
    torch.manual_seed(0)
    for name, weight in Controller([100, ANCHOR, 100, ANCHOR]).named_parameters():
        if weight.numel() >= 6400:
            assert (weight.min().item(), weight.max().item()) == pytest.approx((-0.08, 0.08), abs=2e-4), name
        assert weight.abs().max() <= 0.08, name
        assert weight.std().item() == pytest.approx(0.16 / 12**0.5, rel=0.2), name


def test_probabilities_of_all_sequences_sum_to_one(controller):
    assert controller(all_actions(controller)).log_prob.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_entropy_equals_enumeration(controller):
    _, log_prob, entropy = controller(all_actions(controller))
    probability = log_prob.sum(1).exp()
    by_enumeration = -(probability * log_prob.sum(1)).sum()
    # the chain rule: the entropy of the whole is the expected sum of the steps' conditional entropies
    assert (probability * entropy.sum(1)).sum().item() == pytest.approx(by_enumeration.item(), abs=1e-12)


def test_scoring_samples_gives_the_log_probabilities_they_were_sampled_with(controller):
    sampled = controller(num_samples=50, generator=torch.Generator().manual_seed(1))
    scored = controller(sampled.actions)
    torch.testing.assert_close(scored.log_prob, sampled.log_prob)
    torch.testing.assert_close(scored.entropy, sampled.entropy)


def test_samples_follow_the_policy(controller):
    n = 20_000
    actions = controller(num_samples=n, generator=torch.Generator().manual_seed(2)).actions
    probability = controller(all_actions(controller)).log_prob.sum(1).exp()
    for sequence, p in zip(all_actions(controller), probability, strict=True):
        share = (actions == sequence).all(1).double().mean().item()
        assert share == pytest.approx(p.item(), abs=5 * (p.item() / n) ** 0.5 + 1e-3)


def test_every_token_depends_on_the_first_one(controller):
    """Autoregression: another first token changes the distribution of the second and of the third."""
    actions = torch.zeros(2, len(controller.token_choices()), dtype=torch.int64)
    actions[1, 0] = 1
    log_prob = controller(actions).log_prob
    assert (log_prob[0, 1:] - log_prob[1, 1:]).abs().min() > 1e-6


def test_sampling_is_reproducible_from_the_seed(controller):
    samples = [controller(num_samples=20, generator=torch.Generator().manual_seed(s)).actions for s in (3, 3, 4)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_steps_of_the_same_name_share_head_and_embedding():
    shared = Controller([3, 2, 3, 2], names=["a", "b", "a", "b"], hidden_size=8)
    assert set(shared.heads) == set(shared.embeddings) == {"a", "b"}
    deeper = Controller([3, 2] * 3, names=["a", "b"] * 3, hidden_size=8)
    deeper.load_state_dict(shared.state_dict())  # depth changes no weight
    torch.testing.assert_close(
        deeper(torch.tensor([[0, 1, 2, 0, 1, 1]])).log_prob[:, :4], shared(torch.tensor([[0, 1, 2, 0]])).log_prob
    )


def test_skips_have_the_attention_form_of_the_paper():
    """§3.3: P(layer j is an input of layer i) = sigmoid(v' tanh(W_prev h_j + W_curr h_i)), worked out by hand."""
    torch.manual_seed(0)
    controller = Controller([3, ANCHOR] * 3, names=["a", "anchor"] * 3, hidden_size=8).double()
    assert controller.token_choices() == (3, 3, 2, 3, 2, 2)
    states = []
    hook = controller.cells[0].register_forward_hook(lambda *call: states.append(call[2][0]))
    log_prob = controller(torch.tensor([[0, 1, 1, 2, 0, 1]])).log_prob[0]
    hook.remove()
    first, second, third = states[1::2]  # the hidden states at the anchor points
    for token, (h_j, h_i), chosen in ((2, (first, second), 1), (4, (first, third), 0), (5, (second, third), 1)):
        w_prev, w_curr, v = controller.w_prev.weight, controller.w_curr.weight, controller.v.weight[0]
        p = torch.sigmoid(v @ torch.tanh(w_prev @ h_j[0] + w_curr @ h_i[0]))
        assert log_prob[token].exp().item() == pytest.approx((p if chosen else 1 - p).item(), abs=1e-12)


def test_the_first_tokens_can_be_sampled_and_scored_alone():
    """What growing depth needs: a shorter network from the same weights, with the same probabilities."""
    torch.manual_seed(0)
    controller = Controller([3, ANCHOR] * 3, names=["a", "anchor"] * 3, hidden_size=8)
    rollout = controller(num_samples=6, generator=torch.Generator().manual_seed(0), num_steps=4)
    assert rollout.actions.shape == (6, 3)  # 3, 3, skip
    shallow = Controller([3, ANCHOR] * 2, names=["a", "anchor"] * 2, hidden_size=8)
    shallow.load_state_dict(controller.state_dict())
    torch.testing.assert_close(shallow(rollout.actions).log_prob, controller(rollout.actions).log_prob)
    torch.testing.assert_close(rollout.log_prob, controller(rollout.actions).log_prob)


@pytest.mark.parametrize(
    "num_choices, names, message",
    [
        ([], None, "num_choices and names need the same length, at least 1"),
        ([3, 3], ["a"], "num_choices and names need the same length, at least 1"),
        ([3], ["a", "b"], "num_choices and names need the same length, at least 1"),
        ([3, 2], ["a", "a"], "steps of the same name must have the same number of choices"),
        ([3, 2, 2], ["a", "b", "a"], "steps of the same name must have the same number of choices"),
    ],
)
def test_impossible_spaces_are_refused(num_choices, names, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Controller(num_choices, names=names)


def test_the_first_policy_is_nearly_uniform():
    torch.manual_seed(0)
    probability = Controller([5, 5, 5])(torch.tensor(list(itertools.product(range(5), repeat=3)))).log_prob.sum(1).exp()
    assert probability.max() / probability.min() < 2
