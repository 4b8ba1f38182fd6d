"""The comparison of search methods: tables as people have them, methods on equal footing, honest accuracies."""

import gzip
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from benchmarks import search_quality, summary
from benchmarks.baselines import Evolution, LocalSearch, OwnMethod, RandomSearch
from benchmarks.search_quality import Picks, by_reward, policy_gradient, run_baseline
from benchmarks.spaces import Generated, read_table
from benchmarks.summary import Scores, Summary, everything, mean_ci, same_time, spend, two_sided_p
from controller import Controller
from policy_gradient import PolicyGradient
from utils import InputError

ROOT = Path(__file__).parent.parent


def write(path: Path, columns: str, rows: list) -> Path:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    """4 x 4 x 4 networks, three trainings each; the best has choice 3 everywhere."""
    rows = [(*a, *(sum(a) / 10 + noise for noise in (0, 0.001, 0.002))) for a in itertools.product(range(4), repeat=3)]
    return read_table(write(tmp_path / "table.csv", "t0,t1,t2,val_0,val_1,val_2", rows))


def searched(table, method: str, seeds: int, budgets: tuple[int, ...], monkeypatch) -> dict[int, dict]:
    """Searches as they are kept."""
    monkeypatch.setattr(search_quality, "_space", table)
    return {seed: search_quality.repetition(method, seed, budgets) for seed in range(seeds)}


# --- tables -------------------------------------------------------------------------------------------------------


def test_words_one_training_and_no_test_accuracy(tmp_path):
    rows = [(kind, n, n / 10 + (kind == "sepconv")) for kind in ("sepconv", "none", "pool") for n in (2, 10)]
    table = read_table(write(tmp_path / "table.csv", "operation,width,val_0", rows))
    assert table.num_choices == (3, 2) and table.test is None and table.names is None
    assert table.trainings[table.index[2, 1]] == pytest.approx(0.02)  # sepconv, 10: words by the alphabet, 10 after 2
    observed = table.observed(0)
    judged_by_the_reward = observed.true_accuracy()[table.index[2, 1]]  # there is no other training
    assert observed((2, 1)) == pytest.approx(0.02) == judged_by_the_reward
    assert not table.has_finalists and len(table.notes()) == 3 and "too good by its noise" in table.notes()[1]


def test_decisions_share_a_head_only_where_they_have_as_many_choices(tmp_path):
    for choices, names in (((2, 2), ("edge", "edge")), ((2, 3), None)):
        rows = [(*a, 0.5) for a in itertools.product(*map(range, choices))]
        assert read_table(write(tmp_path / "table.csv", "edge_0,edge_1,val_0", rows)).names == names


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        ("a,b", [(1, 2)], "it needs columns of decisions"),
        ("val_0", [(0.5,)], "it needs columns of decisions"),
        ("a,val_0", [], "it needs columns of decisions"),
        ("a,val_0", [(0, "good"), (1, 0.5)], "every accuracy must be a number"),
        ("a,val_0", [(0, ""), (1, 0.5)], "every accuracy must be a number"),
        ("a,val_0,fresh_0", [(0, 0.5, "good"), (1, 0.5, "")], "every accuracy must be a number"),
        ("a,val_0", [(0, "nan"), (1, 0.5)], "every accuracy must be a finite number"),
        ("a,val_0,fresh_0", [(0, 0.5, "inf"), (1, 0.5, "")], "every accuracy must be a finite number"),
        ("a,val_0,seconds", [(0, 0.5, -1), (1, 0.5, 1)], "seconds must be finite and not negative"),
        ("a,b,val_0", [(0, 0, 0.5), (1, 1, 0.5)], "each combination of its decisions once: a 0, b 1 is there 0 times"),
        ("a,val_0", [(0, 0.5), (0, 0.6)], "a 0 is there 2 times"),
        ("a,val_0", [(0, 0.5), (1, 0.6)], "choose --budgets from 1 to that"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, columns, rows, message):
    path = write(tmp_path / "table.csv", columns, rows)
    flags = ["-m", "benchmarks.search_quality", "--table", str(path), "--name", "none", "--methods", "random search"]
    if "--budgets" in message:  # the others are found on reading, without a new process
        result = subprocess.run([sys.executable, *flags], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1 and message in result.stderr
    else:
        with pytest.raises(InputError, match=message):
            read_table(path)


def test_the_true_accuracy_is_fresh_else_unseen_else_the_mean_of_all(tmp_path):
    rows = [(0, "avx2", 90, 92, 95, 97, "", 99, 7, ""), (1, "avx2", 80, 82, "", "", "", 89, 7, 1)]
    columns = "a,instruction_set,val_0,val_1,fresh_0,fresh_1,fresh_2,test_0,note,seconds"
    table = read_table(write(tmp_path / "table.csv", columns, rows))
    assert table.num_choices == (2,) and table.seconds is None and table.has_finalists and not table.judges_all
    assert table.true_accuracy == pytest.approx([0.96, 0.81]) and table.test == pytest.approx([0.99, 0.89])
    observed = table.observed(0)
    second = observed.again((1,))
    assert {observed((1,)), second} == {0.8, 0.82}
    assert observed.true_accuracy(finalists=False) == pytest.approx([0.96, second])
    assert observed.true_accuracy(finalists=True) == pytest.approx([0.96, 0.81])
    notes = "\n".join(table.notes())
    assert "1 of 2 networks have fresh trainings" in notes and "no seconds" in notes


def test_what_a_search_reads_is_in_the_digest_and_no_more(tmp_path):
    def digest(columns: str, *ends: tuple) -> str:
        rows = [(n, 0.5, *end) for n, end in enumerate(ends)]
        return read_table(write(tmp_path / "table.csv", f"a,val_0{columns}", rows)).digest

    same = digest("", (), ())
    assert same == digest(",fresh_0", (0.6,), ("",)) != digest(",val_1", (0.6,), (0.7,))


def test_the_true_accuracy_holds_no_training_that_a_method_has_seen(table):
    observed = table.observed(3)
    first, second = ([some(a) for a in table.index] for some in (observed, observed.again))
    drawn = np.stack([first, second, observed.true_accuracy()], axis=1)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), table.trainings)  # each of the three once
    assert {int(row.argmin()) for row in drawn} == {0, 1, 2}  # in an order of its own for each network


def test_all_methods_see_the_same_rewards(table):
    forwards, backwards = table.observed(5), table.observed(5)
    for actions in table.index:
        forwards(actions)
    for actions in reversed(table.index):
        backwards(actions)
    assert forwards.seen == backwards.seen != {a: table.observed(6)(a) for a in table.index}


@pytest.mark.parametrize("trainings", [1, 2, 3])
def test_what_chose_a_finalist_never_judges_it(tmp_path, monkeypatch, trainings):
    """On a table of pure noise a pick is as good as any network, if it is judged by a training of its own."""
    rng = np.random.default_rng(0)
    columns = ",".join(f"val_{i}" for i in range(trainings))
    rows = [(*a, *rng.normal(0.9, 0.01, trainings)) for a in itertools.product(range(5), repeat=3)]
    table = read_table(write(tmp_path / "table.csv", f"a,b,c,{columns}", rows))
    monkeypatch.setattr(search_quality, "smoothed", lambda *_: {"picks": {}})
    told = Summary(table, (40,), {"random search": searched(table, "random search", 40, (40,), monkeypatch)})
    kinds = told.told_of("random search")["budgets"]["40"]
    assert set(kinds) == ({"found", "finals"} if trainings == 3 else {"found"})
    for kind in kinds if trainings > 1 else ():
        assert kinds[kind]["truth"] == pytest.approx(0.9, abs=0.005)


# --- generated spaces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pairs", "singles"])
def test_a_generated_space_has_mean_0_and_standard_deviation_1(kind):
    space = Generated(kind, decisions=5, choices=3, tables=12)  # several tables over the same pair
    observed, everyone = space.observed(4), list(itertools.product(range(3), repeat=5))
    values = np.array([observed.value(actions) for actions in everyone])
    assert values.mean() == pytest.approx(0, abs=1e-12) and values.std() == pytest.approx(1)
    if kind == "singles":
        assert observed.maximum == pytest.approx(values.max())
    else:
        random, total = np.random.default_rng((4, 2)), np.zeros(len(everyone))
        for _ in range(12):
            (i, j), numbers = sorted(random.choice(5, 2, replace=False)), random.normal(size=(3, 3))
            total += [numbers[actions[i], actions[j]] for actions in everyone]
        assert values == pytest.approx((total - total.mean()) / total.std()) and observed.maximum is None
    noise = [observed(actions) - observed.value(actions) for actions in everyone]
    assert np.std(noise) == pytest.approx(0.1, rel=0.2) and abs(np.mean(noise)) < 0.03
    again, other = space.observed(4), space.observed(5)
    assert [again(actions) for actions in reversed(everyone)] == list(observed.seen.values())[::-1]
    assert other.value(everyone[7]) != observed.value(everyone[7])
    assert Generated(kind).num_choices == (4,) * 30


def test_a_space_tells_the_share_of_its_maximum_and_the_last_children(monkeypatch):
    space = Generated("singles", decisions=4)
    runs = searched(space, "controller", 2, (20, 60), monkeypatch)
    told = Summary(space, (20, 60), {"controller": runs}).told_of("controller")
    picks = [run["children"][run["picks"]["found"][1]] for run in runs.values()]
    shares = [pick / run["maximum"] for pick, run in zip(picks, runs.values(), strict=True)]
    assert told["budgets"]["60"]["found"]["truth"] == pytest.approx(np.mean(picks), abs=1e-6)
    assert told["budgets"]["60"]["found"]["of_maximum"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert told["last_40"]["truth"] == pytest.approx(
        np.mean([run["children"][-40:] for run in runs.values()]), abs=1e-6
    )
    assert set(told["budgets"]["60"]) == {"found", "found_reward", "modes", "samples"}  # and no finalists
    assert set(searched(space, "random search", 1, (60,), monkeypatch)[0]["picks"]) == {"found", "curve"}


# --- searches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", [1, 10])
@pytest.mark.parametrize("method", [RandomSearch, Evolution, LocalSearch])
def test_a_baseline_method_pays_for_distinct_networks_and_waits_for_its_rewards(table, method, pending, monkeypatch):
    monkeypatch.setattr(search_quality, "smoothed", lambda *_: {})
    observed, told = table.observed(0), []

    class Noted(method):
        def ask(self):
            assert len(told) >= self.count - pending + 1  # no more than `pending` without a reward
            self.count += 1
            return super().ask()

        def tell(self, actions, reward):
            told.append(actions)
            assert reward == observed.seen[actions]
            super().tell(actions, reward)

        count = 0

    run_baseline(observed, (40,), 0, Noted, pending)
    assert len(observed.seen) == 40 and len(told) >= 40 - pending
    again = table.observed(0)
    run_baseline(again, (40,), 0, method, pending)
    assert list(again.seen) == list(observed.seen)


def test_local_search_climbs_to_the_top_and_starts_again(table, monkeypatch):
    monkeypatch.setattr(search_quality, "smoothed", lambda *_: {})
    observed = table.observed(1)
    run_baseline(observed, (35,), 0, LocalSearch)
    assert (3, 3, 3) in observed.seen
    first = next(iter(observed.seen))
    assert all(sum(a != b for a, b in zip(first, other, strict=True)) == 1 for other in list(observed.seen)[1:10])


def test_evolution_mutates_one_decision_of_a_member():
    search, told = Evolution((4, 4, 4), 0), []
    for i in range(30):
        actions = search.ask()
        if i >= 10:
            changed = {sum(a != b for a, b in zip(actions, parent, strict=True)) for parent in told[-10:]}
            assert 1 in changed
        told.append(actions)
        search.tell(actions, sum(actions))
    assert len(search.alive) == 10 and [member for member, _ in search.alive] == told[-10:]


def test_the_papers_settings_are_those_of_the_program():
    names = {"lr": "controller_lr", "num_layers": "controller_layers"}
    flags = {names.get(key, key): value for key, value in search_quality.PAPER_CONTROLLER.items()}
    assert flags.items() <= train.PAPER_FLAGS.items()
    changed = set(itertools.chain(*search_quality.CHANGES.values()))
    assert set(search_quality.PAPER_CONTROLLER) - changed == {"update_lag", "reward_exponent"}


def test_a_sequential_controller_learns_from_each_child_before_the_next(table, monkeypatch):
    class Watched(PolicyGradient):
        def ask(self, num_children):
            batch = super().ask(num_children)
            assert len(self.asked) == len(self.reward_of) + 1
            return batch

    monkeypatch.setattr(search_quality, "PolicyGradient", Watched)
    search, settings = search_quality.METHODS["sequential controller"]
    assert len(search(table.observed(0), (10,), 0, **settings)["picks"]["curve"]) == 10
    assert "sequential controller" in set(search_quality.LARGE) - set(search_quality.COMPARED)


def test_what_the_controller_hands_over_is_chosen_by_the_policy_of_that_time(table):
    """A search of 30 children that goes on to 60 returns what one returns that ends there."""
    observed = table.observed(2)
    picks = policy_gradient(observed, (spend(33)[0] + 3, 60), 2)["picks"]
    assert spend(33) == (30, 3)
    children = list(observed.seen)
    torch.manual_seed(2)
    search = PolicyGradient(Controller(table.num_choices, table.names), seed=2)
    list(search.search(table.observed(2), 30))
    assert list(search.reward_of) == children[:30]
    finalists = search.ranking({actions: [observed(actions)] for actions in children[:30]})[:3]
    trained = {a: [observed(a), observed.again(a)] for a in children if a in finalists}
    assert children[picks["finals"][0]] == search.ranking(trained)[0]
    short = policy_gradient(table.observed(2), (30,), 2)["picks"]["found"]
    assert children[short[0]] == search.ranking({actions: [observed(actions)] for actions in children[:30]})[0]


def test_a_baseline_methods_children_are_smoothed_by_the_same_update(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(*a, *(sum(a) / 20 + rng.normal(0, 0.1, 3))) for a in itertools.product(range(4), repeat=3)]
    table = read_table(write(tmp_path / "table.csv", "t0,t1,t2,val_0,val_1,val_2", rows))
    observed = table.observed(7)
    budgets = tuple(range(6, 42, 2))
    picks = run_baseline(observed, budgets, 7, RandomSearch, 10)["picks"]["found_smoothed"]
    assert run_baseline(table.observed(7), budgets, 7, RandomSearch, 1) == {"picks": {}}  # what no page shows
    torch.manual_seed(7)
    search, children = PolicyGradient(Controller(table.num_choices, table.names)), list(observed.seen)
    for i in range(0, 40, 2):  # told by hand, as if it had sampled them
        search.rollout = search.controller(None, 1)
        search.pending.append(children[i : i + 2])
        search.tell(children[i : i + 2], [observed(actions) for actions in children[i : i + 2]])
        if i + 2 in budgets:
            ranked = search.ranking({actions: [observed(actions)] for actions in children[: i + 2]})
            assert children[picks[budgets.index(i + 2)]] == ranked[0]


def tied(tmp_path, count: int):
    """`count` networks of equal means, whose rewards differ: 0 has 0.5 and 0.9, the others 0.6 and 0.8, all truly 1."""
    rows = [(n, 0.5, 0.9, 1) if n == 0 else (n, 0.6, 0.8, 1) for n in range(count)]
    table = read_table(write(tmp_path / "table.csv", "a,val_0,val_1,val_2", rows))
    observed = table.observed(0)
    observed.drawn = table.trainings.copy()
    observed.rewards = observed.drawn[:, 0]
    return table, observed


def test_of_equal_finalists_the_earliest_child_is_returned(tmp_path):
    _, observed = tied(tmp_path, 2)
    for n in (0, 1):
        observed((n,))
    picks = Picks(observed, (2,), by_reward)
    picks.wanted.clear()
    picks.wanted.append((2, "finals", 2))
    picks.before(math.inf)
    assert picks.by_kind["finals"] == [0]  # though its first reward is lower
    assert summary.best_position(observed, np.array([0, 1]), 2)[0] == 0
    assert summary.best_position(observed, np.array([0, 1]), 0)[0] == 1


def test_everything_leaves_no_network_out(tmp_path):
    table, observed = tied(tmp_path, 64)
    observed.drawn[63, :2] = 0.7, 0.9
    assert everything(table, observed, (25, 50))["picks"] == {"found": [63, 63], "finals": [63, 63]}
    assert summary.finalists_of(729) == 20


def test_random_search_goes_on_until_it_has_taken_as_long(tmp_path):
    rng, everyone = np.random.default_rng(0), list(itertools.product(range(4), repeat=4))
    rows = [(*a, *rng.random(3), 3 if a[0] == 3 else 1) for a in everyone]
    table = read_table(write(tmp_path / "table.csv", "a,b,c,d,val_0,val_1,val_2,seconds", rows))
    observed, random = table.observed(0), RandomSearch(table.num_choices, 0)
    asked = [table.index[a] for a in dict.fromkeys(random.ask() for _ in range(2000))]
    slow, budgets = [table.index[a] for a in everyone if a[0] == 3], range(2, 64)
    controller = {"children": slow, "finals_seconds": [3.3 * budget for budget in budgets]}
    run = same_time(table, observed, budgets, controller, 0)
    assert run["children"] == asked[: len(run["children"])]
    for k, budget in enumerate(budgets):
        n = next(n for n in range(1, 200) if table.seconds[asked[:n]].sum() >= 3 * budget)
        assert n > budget and run["picks"]["found"][k] == max(range(n), key=lambda i: observed.rewards[asked[i]])
        for n in range(1, 200):
            best = sorted(range(n), key=lambda i: -observed.rewards[asked[i]])[: summary.finalists_of(n)]
            if table.seconds[asked[:n]].sum() + table.seconds[[asked[i] for i in best]].sum() >= 3.3 * budget:
                break
        best = best or [max(range(n), key=lambda i: observed.rewards[asked[i]])]
        assert run["picks"]["finals"][k] == max(best, key=lambda i: observed.drawn[asked[i], :2].sum())


# --- measuring ----------------------------------------------------------------------------------------------------


def test_the_paired_test_is_two_sided():
    noise = np.random.default_rng(0).normal(size=50)
    assert two_sided_p(Scores(noise + 1)) == two_sided_p(Scores(-noise - 1)) < 0.002
    assert two_sided_p(Scores(np.zeros(20))) == 1 and two_sided_p(Scores(noise)) > 0.05


def test_without_noise_of_training_the_interval_is_the_usual_one():
    values = np.random.default_rng(1).normal(size=200)
    half = mean_ci(Scores(values))["truth_ci"]
    assert half == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(200), rel=0.06)
    assert mean_ci(Scores(values, np.zeros((summary.ROUNDS, 200))))["truth_ci"] == pytest.approx(half)


def test_the_luck_of_a_networks_trainings_is_that_of_their_mean():
    trainings = np.array([[0.1, 0.2, 0.6, np.nan], [0.5, np.nan, np.nan, np.nan]])
    luck = summary.resampled_trainings(trainings, 0)
    assert luck.mean() == pytest.approx(0, abs=0.01)
    assert luck.std() == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3), rel=0.05)
    assert not summary.resampled_trainings(trainings, 1).any()


def test_intervals_hold_the_luck_of_the_table(tmp_path, monkeypatch):
    """Two methods that return two networks each, in 60 searches; the true accuracy of a network is noisy, too."""
    monkeypatch.setattr(summary, "ROUNDS", 400)
    summary.resampled.cache_clear()
    rng, inside, naive, true = np.random.default_rng(0), 0, 0, np.array([0.90, 0.91, 0.92, 0.89])
    for _ in range(200):
        fresh = rng.normal(true[:, None], 0.01, (4, 6))
        rows = [(n, 0.5, 0.5, *fresh[n]) for n in range(4)]
        columns = "a,val_0,val_1," + ",".join(f"fresh_{i}" for i in range(6))
        table = read_table(write(tmp_path / "table.csv", columns, rows))
        ours, theirs = (rng.integers(low, low + 2, 60) for low in (0, 2))
        runs = {
            name: {s: {"children": [int(n)], "picks": {"found": [0]}} for s, n in enumerate(some)}
            for name, some in (("controller", ours), ("random search", theirs))
        }
        row = Summary(table, (1,), runs).compare("random search", "found", 0, "found")
        expected = true[:2].mean() - true[2:].mean()
        inside += abs(row["controller_ahead"] - expected) < row["controller_ahead_ci"]
        differences = table.true_accuracy[ours] - table.true_accuracy[theirs]
        naive += abs(differences.mean() - expected) < 1.96 * differences.std() / math.sqrt(60)
    summary.resampled.cache_clear()
    assert 0.9 < inside / 200 < 0.99 and naive / 200 < 0.8


def test_the_same_networks_are_level_however_lucky_the_table(tmp_path):
    rows = [(n, 0.5, 0.5, 0.1 * n, 0.9) for n in range(4)]
    table = read_table(write(tmp_path / "table.csv", "a,val_0,val_1,fresh_0,fresh_1", rows))
    runs = {s: {"children": [s % 4], "picks": {"found": [0]}} for s in range(8)}
    row = Summary(table, (1,), {"controller": runs, "TPE": runs}).compare("TPE", "found", 0, "found")
    assert row["controller_ahead"] == row["controller_ahead_ci"] == 0 and row["p"] == 1 and row["truth_ci"] > 0.1


def test_a_summary_tells_every_kind_of_answer(table, monkeypatch):
    runs = {name: searched(table, name, 3, (10, 40), monkeypatch) for name in ("controller", "random search")}
    told = Summary(table, (10, 40), runs)
    assert list(told.runs) == ["controller", "random search", "everything"]  # and no row of the same time
    ours, theirs = (told.told_of(name) for name in runs)
    kinds = {"found", "finals"}
    assert set(ours["budgets"]["40"]) == kinds | {f"{kind}_reward" for kind in kinds} | {"modes", "samples"}
    assert set(theirs["budgets"]["40"]) == kinds | {f"{kind}_smoothed" for kind in kinds}
    searches = runs["controller"].items()
    third = [table.observed(s).true_accuracy()[run["children"][run["picks"]["found"][1]]] for s, run in searches]
    row, other = ours["budgets"]["40"]["found"], theirs["budgets"]["40"]["found"]
    assert row["n"] == 3 and row["truth"] == pytest.approx(np.mean(third), abs=1e-6) and row["rank"] >= 1
    assert other["controller_ahead"] == pytest.approx(row["truth"] - other["truth"], abs=1e-6) and 0 < other["p"] <= 1
    assert other["controller_ahead_all"] == pytest.approx(row["truth_all"] - other["truth_all"], abs=1e-6)
    mean, best = table.true_accuracy.mean(), np.sort(table.true_accuracy)[-20:].mean()
    windows = [table.true_accuracy[[run["children"][n : n + 20] for _, run in searches]].mean() for n in (0, 20)]
    assert ours["children_in_steps_of_20"] == pytest.approx(windows, abs=1e-6)
    assert ours["share_in_steps_of_20"] == pytest.approx((np.array(windows) - mean) / (best - mean), abs=1e-4)
    samples = table.true_accuracy[[run["samples"][1] for _, run in searches]].mean()
    assert ours["budgets"]["40"]["samples"]["share"] == pytest.approx((samples - mean) / (best - mean), abs=1e-4)
    assert by_reward({(0,): [1, 4], (1,): [3, 2], (2,): [3]}) == [(2,), (0,), (1,)]
    assert len(ours["curves"]["truth"]) == len(ours["curves"]["top5_above_random"]) == 20


# --- what was run is kept -----------------------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch):
    """Searches run here, not in processes of their own."""

    class Pool:
        def __init__(self, processes, context, start, arguments):
            start(*arguments)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        map = staticmethod(map)

    monkeypatch.setattr(search_quality, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(search_quality, "_space", None)


def test_what_was_run_is_kept(tmp_path, monkeypatch, capsys, in_this_process):
    """A run that is interrupted goes on, a method is run again alone, and other tables are refused in one line."""
    rows = [
        (*a, *(sum(a) / 10 + noise for noise in (0, 0.001, 0.002)), 1) for a in itertools.product(range(4), repeat=3)
    ]
    path = write(tmp_path / "mine.csv", "t0,t1,t2,val_0,val_1,val_2,seconds", rows)
    monkeypatch.setattr(search_quality, "RESULTS", tmp_path)

    def run(*methods: str, more: str = "", budgets: str = "10 20") -> dict:
        flags = f"--table {path} --repetitions 3 --processes 1 --budgets {budgets} {more}"
        monkeypatch.setattr(sys, "argv", ["search_quality", *flags.split(), "--methods", *methods])
        search_quality.main()
        return json.loads((tmp_path / "search_quality_mine.json").read_text())

    def lines() -> list[dict]:
        return list(map(json.loads, search_quality.read_lines(tmp_path / "search_quality_mine.jsonl.gz")))

    first = run("controller", "random search")
    assert list(first["methods"]) == ["controller", "random search", "random search, same time", "everything"]
    assert first["command"].startswith("python -m benchmarks.search_quality --table mine.csv --repetitions 3")
    whole = lines()
    assert [(line["method"], line["repetition"]) for line in whole[1:]] == [
        (method, seed) for method in ("controller", "random search") for seed in range(3)
    ]
    kept = tmp_path / "search_quality_mine.jsonl.gz"
    kept.write_bytes(kept.read_bytes()[:-40])  # as if it had been killed
    assert 1 < len(lines()) < 7
    assert run("controller", "random search")["methods"] == first["methods"] and len(lines()) > len(whole)
    again = run("random search", more="--again")
    assert again["methods"] == first["methods"] and len(again["commands"]) == 2
    with pytest.raises(SystemExit, match="2"):
        run("random search", budgets="10 15")
    path.write_text(path.read_text().replace("0.101", "0.102"))
    with pytest.raises(SystemExit, match="2"):
        run("random search")
    said = capsys.readouterr()
    first, second = said.err.splitlines()[-2:]
    assert "holds searches of another budgets: move it away" in first and "searches of another digest" in second
    assert said.out.count("true accuracy: the unseen third training") == 3
    assert gzip.decompress(kept.read_bytes()).count(b'"method":"controller"') == 3


# --- a method of one's own ----------------------------------------------------------------------------------------

OWN = """
from benchmarks.baselines import RandomSearch

class Mine(RandomSearch):
    pass

class Silent(RandomSearch):
    tell = None

class Unseeded(RandomSearch):
    def __init__(self, num_choices):
        pass

class Short(RandomSearch):
    def ask(self):
        return super().ask()[1:]

class TooLarge(RandomSearch):
    def ask(self):
        return (0, 0, 4)

class Words(RandomSearch):
    def ask(self):
        return ["a", "b", "c"]

class Same(RandomSearch):
    def ask(self):
        return [0, 0, 0]

class Late(RandomSearch):
    def tell(self, actions, reward):
        if actions[0] == 3:
            raise KeyError("three\\nis too many")

constant = 3
"""


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """The benchmark in this process, with modules of one's own at hand; returns the kept searches of each method."""
    rows = [(*a, *(sum(a) / 10 + noise for noise in (0, 0.001, 0.002))) for a in itertools.product(range(4), repeat=3)]
    table = write(tmp_path / "mine.csv", "t0,t1,t2,val_0,val_1,val_2", rows)
    (tmp_path / "own_module.py").write_text(OWN)
    (tmp_path / "broken_module.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(search_quality, "RESULTS", tmp_path)
    monkeypatch.setattr(search_quality, "METHODS", dict(search_quality.METHODS))

    def run(flags: str, *methods: str) -> dict[str, list[list[int]]]:
        flags = f"--table {table} --repetitions 2 --processes 1 --budgets 5 10 {flags}".split()
        flags += ["--methods", *methods] if methods else []
        monkeypatch.setattr(sys, "argv", ["search_quality", *flags])
        search_quality.main()
        children = {}
        for line in search_quality.read_lines(tmp_path / "search_quality_mine.jsonl.gz"):
            search = json.loads(line)
            children.setdefault(search.get("method"), []).append(search.get("children"))
        return children

    yield run
    for name in ("own_module", "broken_module"):
        sys.modules.pop(name, None)


def test_a_method_of_ones_own_is_named_by_a_flag(compare, capsys, tmp_path):
    first = compare("--method own_module:Mine --pending 1", "random search")
    assert first["own_module:Mine"] == first["random search"] and len(first["random search"]) == 2
    told = json.loads((tmp_path / "search_quality_mine.json").read_text())["methods"]
    for budget, kinds in told["own_module:Mine"]["budgets"].items():
        assert kinds.items() <= told["random search"]["budgets"][budget].items()  # which has picks by both as well
    assert "note: 2 searches" not in capsys.readouterr().out
    assert compare("--method own_module:Mine --pending 1") == first  # nothing is run
    said = capsys.readouterr().out
    assert "note: 2 searches of own_module:Mine are from search_quality_mine.jsonl.gz" in said
    assert "random search" in said and "different networks only" not in said


@pytest.mark.parametrize(
    "name, message",
    [
        ("own_module", "takes a module and a class, as in my_module:MyClass, not 'own_module'"),
        ("folder/own_module.py:Mine", "takes a module and a class"),
        ("no_module:Mine", "cannot import no_module (ModuleNotFoundError: No module named 'no_module')"),
        ("own_module.py:Mine", "cannot import own_module.py (ModuleNotFoundError"),
        ("broken_module:Mine", "cannot import broken_module (ModuleNotFoundError: No module named 'nothing_of_this"),
        ("own_module:Nothing", "own_module has no class Nothing"),
        ("own_module:constant", "own_module has no class constant"),
        ("own_module:Silent", "the class needs tell"),
        ("own_module:Unseeded", "TypeError: Unseeded.__init__() takes 2 positional arguments but 3 were given"),
        ("own_module:Short", "ask() must return 3 indices, from 0 to one less than (4, 4, 4), not ("),
        ("own_module:TooLarge", "not (0, 0, 4)"),
        ("own_module:Words", "not ['a', 'b', 'c']"),
        ("own_module:Mine --pending 0", "--pending must be at least 1, not 0"),
    ],
)
def test_what_is_wrong_with_a_method_of_ones_own_is_one_line(compare, capsys, tmp_path, name, message):
    with pytest.raises(SystemExit, match="2"):
        compare(f"--method {name}")
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1
    assert not list(tmp_path.glob("search_quality_*"))


def test_what_goes_wrong_later_in_a_method_of_ones_own_is_one_line_with_its_place(compare, table):
    with pytest.raises(InputError) as raised:
        run_baseline(table.observed(0), (40,), 0, OwnMethod, name="own_module:Late")
    line = next(n for n, text in enumerate(OWN.splitlines(), start=1) if "raise KeyError" in text)
    assert re.fullmatch(rf"own_module:Late failed in own_module.py, line {line}: KeyError: .*", str(raised.value))


def test_a_method_that_asks_for_the_same_again_and_again_is_noticed(compare, capsys, in_this_process):
    assert compare("--method own_module:Same") == {None: [None], "own_module:Same, 10 pending": [[0], [0]]}
    assert "own_module:Same, 10 pending asked for 1 different networks only" in capsys.readouterr().out
