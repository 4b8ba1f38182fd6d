"""The comparison of search methods: tables as people have them, rivals on equal footing, an honest truth."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search_quality
from benchmarks.search_quality import Evolution, LocalSearch, Observed, RandomSearch, read_table, rival, sign_flip_p

ROOT = Path(__file__).parent.parent


def write(path: Path, columns: str, rows: list) -> Path:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    """4 x 4 x 4 networks, three trainings each; the best has choice 3 everywhere."""
    rows = [(*a, *(sum(a) / 10 + noise for noise in (0, 0.001, 0.002))) for a in itertools.product(range(4), repeat=3)]
    return read_table(write(tmp_path / "table.csv", "t0,t1,t2,val_0,val_1,val_2", rows))


def test_words_one_training_and_no_test_accuracy(tmp_path):
    rows = [(kind, n, n / 10 + (kind == "sepconv")) for kind in ("sepconv", "none", "pool") for n in (2, 10)]
    table = read_table(write(tmp_path / "table.csv", "operation,width,val_0", rows))
    assert table.num_choices == (3, 2) and table.test is None and table.names is None
    assert table.trainings[table.index[2, 1]] == pytest.approx(0.02)  # sepconv, 10: words by the alphabet, 10 after 2
    observed = Observed(table, 0)
    assert observed((2, 1)) == pytest.approx(0.02) == observed.true([(2, 1)])  # the only training is the truth too


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
        ("a,val_0", [(0, "nan"), (1, 0.5)], "every accuracy must be a finite number"),
        ("a,b,val_0", [(0, 0, 0.5), (1, 1, 0.5)], "each combination of its decisions once: 4 rows, not 2"),
        ("a,val_0", [(0, 0.5), (0, 0.6)], "each combination"),
        ("a,val_0", [(0, 0.5), (1, 0.6)], "choose smaller --budgets"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, columns, rows, message):
    path = write(tmp_path / "table.csv", columns, rows)
    flags = ["-m", "benchmarks.search_quality", "--table", str(path), "--name", "none", "--methods", "random search"]
    if message == "choose smaller --budgets":  # the others are found on reading, without a new process
        result = subprocess.run([sys.executable, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1 and message in result.stderr
    else:
        with pytest.raises(SystemExit, match=message):
            read_table(path)


def test_the_truth_holds_no_training_that_a_method_has_seen(table):
    observed = Observed(table, 3)
    drawn = np.stack([observed.first, observed.second, observed.truth], axis=1)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), table.trainings)  # each of the three once
    assert {int(row.argmin()) for row in drawn} == {0, 1, 2}  # in an order of its own for each network


def test_all_methods_see_the_same_rewards(table):
    forwards, backwards = Observed(table, 5), Observed(table, 5)
    for actions in table.index:
        forwards(actions)
    for actions in reversed(table.index):
        backwards(actions)
    assert forwards.seen == backwards.seen != {a: Observed(table, 6)(a) for a in table.index}


@pytest.mark.parametrize("under_way", [1, 10])
@pytest.mark.parametrize("method", [RandomSearch, Evolution, LocalSearch])
def test_a_rival_pays_for_distinct_networks_and_waits_for_its_rewards(table, method, under_way):
    observed, told = Observed(table, 0), []

    class Noted(method):
        def ask(self):
            assert len(told) >= self.count - under_way + 1  # no more than `under_way` without a reward
            self.count += 1
            return super().ask()

        def tell(self, actions, reward):
            told.append(actions)
            assert reward == observed.seen[actions]
            super().tell(actions, reward)

        count = 0

    rival(observed, 40, 0, Noted, under_way)
    assert len(observed.seen) == 40 and len(told) >= 40 - under_way
    again = Observed(table, 0)
    rival(again, 40, 0, method, under_way)
    assert list(again.seen) == list(observed.seen)


def test_local_search_climbs_to_the_top_and_starts_again(table):
    observed = Observed(table, 1)
    rival(observed, 35, 0, LocalSearch)
    assert observed.best(35, finalists=False) == (3, 3, 3)
    first = next(iter(observed.seen))
    assert all(sum(a != b for a, b in zip(first, other, strict=True)) == 1 for other in list(observed.seen)[1:10])


def test_evolution_mutates_one_decision_of_a_member(table):
    search, told = Evolution((4, 4, 4), 0), []
    for i in range(30):
        actions = search.ask()
        if i >= 10:
            changed = {sum(a != b for a, b in zip(actions, parent, strict=True)) for parent in told[-10:]}
            assert 1 in changed
        told.append(actions)
        search.tell(actions, sum(actions))
    assert len(search.alive) == 10 and [member for member, _ in search.alive] == told[-10:]


def test_the_paired_test_is_two_sided():
    noise = np.random.default_rng(0).normal(size=50)
    assert sign_flip_p(noise + 1) == sign_flip_p(-noise - 1) < 0.001
    assert sign_flip_p(np.zeros(20)) == 1 and sign_flip_p(noise) > 0.05


def test_a_repetition_scores_every_kind_of_answer(table, monkeypatch):
    monkeypatch.setattr(search_quality, "_table", table)
    monkeypatch.setattr(search_quality, "_budgets", (10, 40))
    result = search_quality.repetition("controller", 0)
    for kind in ("found", "finals", "modes", "samples", "late"):
        assert list(result[kind]) == [10, 40] and all(0 <= value <= 1 for value in result[kind].values())
    assert result["children"] == 40 and list(result["steps"]) == [20, 40]
    runs = {
        "controller": [result] * 3,
        "random search": [search_quality.repetition("random search", s) for s in range(3)],
    }
    compared = search_quality.summaries("random search", runs)["budgets"]["40"]["found"]
    assert compared["n"] == 3 and compared["controller_ahead"] == pytest.approx(
        result["found"][40] - np.mean([run["found"][40] for run in runs["random search"]])
    )
    ours = search_quality.summaries("controller", runs)
    assert 0 < compared["p"] <= 1 and ours["budgets"]["40"]["found"]["rank"] >= 1
    assert ours["budgets"]["40"]["modes"]["truth"] == pytest.approx(result["modes"][40])
    assert ours["children_in_steps_of_20"] == pytest.approx([result["steps"][20], result["steps"][40]])


@pytest.mark.parametrize("trainings", [1, 2, 3])
def test_what_chose_a_finalist_is_never_its_truth(tmp_path, monkeypatch, trainings):
    """On a table of pure noise a pick is as good as any network, if its truth is a training of its own."""
    rng = np.random.default_rng(0)
    columns = ",".join(f"val_{i}" for i in range(trainings))
    rows = [(*a, *rng.normal(0.9, 0.01, trainings)) for a in itertools.product(range(5), repeat=3)]
    table = read_table(write(tmp_path / "table.csv", f"a,b,c,{columns}", rows))
    monkeypatch.setattr(search_quality, "_table", table)
    monkeypatch.setattr(search_quality, "_budgets", (40,))
    runs = [search_quality.repetition("random search", seed) for seed in range(40)]
    kinds = {"found", "finals"} if trainings == 3 else {"found"}
    assert kinds == {"found", "finals"} & set(runs[0])
    for kind in kinds if trainings > 1 else ():
        assert np.mean([run[kind][40] for run in runs]) == pytest.approx(0.9, abs=0.005)
