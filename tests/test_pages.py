"""README and docs/ say what results/ says, and what they show works."""

import csv
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest

from benchmarks.common import PANEL
from benchmarks.readme import PAGES, render
from benchmarks.search_quality import read_table, spend

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
TEXT = {page.name: page.read_text() for page in PAGES}


def read(*parts: str) -> dict:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def budgets(name: str, method: str) -> dict:
    return read(f"search_quality_{name}.json")["methods"][method]["budgets"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_equal_the_files_in_results(page):
    assert render(page.read_text()) == page.read_text()


def last(method: str) -> float:
    """Mean accuracy of the last 20 children of the searches on Fashion-MNIST, in %."""
    found = []
    for seed in ("", "-seed1", "-seed2"):
        lines = (RESULTS / f"fashionmnist-paper{method}{seed}" / "children.jsonl").read_text().splitlines()
        found += sorted(map(json.loads, lines), key=lambda row: row["child"])[-20:]
    return 100 * statistics.fmean(row["val_accuracy"] for row in found)


def claims() -> dict[str, list[str]]:
    """The numbers inside of sentences, by page."""
    everything = [budgets(name, "everything")["200"]["found"]["truth"] for name in ("mnist", "nasbench_macro")]
    without = [budgets(name, "controller without replay")["100"]["found"]["n"] for name in ("mnist", "nasbench_macro")]
    fidelity, speed, cost = (read(f"{name}.json") for name in ("reward_fidelity", "child_speed", "paper_cost"))
    live = read("live_check.json")["searches"]
    trainings = max(int(key.split("_")[-1]) for key in fidelity["judge"]["val"] if re.search(r"of_\d", key))
    reliable = [fidelity[of]["val"][f"reliability_of_{trainings}"] for of in ("judge", "judge in the best tenth")]
    default = fidelity["recipes"]["0.2 epochs"]
    assert all(default[key][0] <= 0 for key in default if key.endswith("below_best_ci"))
    rows = sorted(csv.DictReader((RESULTS / "mnist_space.csv").open()), key=lambda row: -float(row["val_mean"]))
    place = [row["architecture"] for row in rows].index
    found, random = (read(name, "best.json")["architecture"] for name in ("mnist", "mnist-random"))
    found_fashion = read("fashionmnist-small", "evaluation.json")
    largest = next(row for row in found_fashion["references"] if row["name"] == "largest network")
    replays = sum(run["replay_is_the_same"] for run in live)
    again = [sum(run[key] for run in live) for key in ("equal", "trained_again")]
    seconds = 3600 * speed["cores"] / speed["children_per_hour"]
    late = [
        read("search_quality_nasbench_macro_800.json")["methods"][m]["late"]["4800"]
        for m in ("800 workers", "random search")
    ]
    minutes = [round(read(name, "time.json")["wall"] / 60) for name in ("mnist", "mnist-random")]
    waiting = next(row for row in read("scaling.json")["simulated"]["lag 0"] if row["workers"] == 800)
    return {
        "results.md": [
            f"`{found}` is number {1 + place(found)} of the {len(rows)} networks by the mean of three trainings",
            f"`{random}` is number {1 + place(random)}",
            f"for the controller without replay, {without[0]} and {without[1]}",
            f"trains the whole space once hands over {100 * everything[0]:.3f}, less than a search of 100",
            f"trains the whole space once hands over {100 * everything[1]:.3f}",
            f"{fidelity['networks'] - fidelity['of the best tenth']} over the whole range of the space and "
            f"{fidelity['of the best tenth']} of its best tenth",
            f"{trainings} times each so far",
            "{:.2f} is the network and not chance, in the best tenth {:.2f}".format(*reliable),
            f"with {1 - found_fashion['parameters'] / largest['parameters']:.0%} fewer parameters",
            f"Each of the {replays} replays samples and picks what its search did",
            "{} of {} children that were trained again".format(*again),
            f"A child takes {seconds:.1f} core-seconds on average over {len(PANEL)} architectures",
            f"Those of the default search took {read('scaling.json')['mean_seconds']:.1f}",
            "of 100, {} are children and {} are finalists'".format(*spend(100)),
            "search took {} minutes and random search {}".format(*minutes),
            f"{speed['ratio']:.0f} times faster",
            f"{speed['test_accuracy']:.2%} mean test accuracy where that reached {speed['original_test_accuracy']:.2%} "
            f"({len(speed['accuracy_architectures'])} architectures)",
            f"{speed['share_of_peak']:.0%} of the cores' float32 matrix-product peak",
        ],
        "paper_space.md": [
            "have {:.1f} on average, those of random search {:.1f}".format(*map(last, ("", "-random"))),
            f"{cost['core_years']:.0f} years on one core",
            f"{cost['flops'] / 1e14 / 86400:.0f} days on a GPU that keeps up 100 TFLOP/s",
        ],
        "cluster.md": [
            f"800 workers would train {waiting['used_without_drain']:.0%} of it",
            f"have {100 * late[0]['truth']:.2f} after 4,800 of them",
            f"random ones {100 * late[1]['truth']:.2f} ({late[0]['n']} searches)",
        ],
    }  # fmt: skip


def test_numbers_in_sentences_equal_the_files_in_results():
    for page, sentences in claims().items():
        text = " ".join(TEXT[page].split())
        for sentence in sentences:
            assert sentence in text, f"{page} does not say: {sentence}"


def test_what_is_said_of_the_comparison_is_so():
    macro, mnist = (
        {m: budgets(name, m) for m in read(f"search_quality_{name}.json")["methods"]}
        for name in ("nasbench_macro", "mnist")
    )
    rivals = ("regularised evolution, 10 under way", "local search, 10 under way", "TPE, 10 under way")
    for budget in ("25", "50", "100", "200"):  # ahead of random search, and no rival clearly ahead
        random = macro["random search"][budget]["found"]
        assert random["controller_ahead"] > 0 and random["p"] < 0.05
        assert not any(
            macro[m][budget]["found"]["controller_ahead"] < 0 and macro[m][budget]["found"]["p"] < 0.05 for m in rivals
        )
    early = macro["TPE"]["25"]["found"]
    assert early["controller_ahead"] < 0 and early["p"] < 0.05
    for budget in ("100", "200"):  # on MNIST not better than random search, after 200 a little worse
        assert mnist["random search"][budget]["found"]["controller_ahead"] < 0
    assert mnist["random search"]["200"]["found"]["p"] < 0.05
    ahead = {b: mnist["random search"][b]["found"] for b in ("25", "50", "100", "200")}
    assert [b for b, row in ahead.items() if row["controller_ahead"] > 0 and row["p"] < 0.05] == ["50"]
    for table in (macro, mnist):
        assert table["random search"]["200"]["finals"]["controller_ahead"] < 0
    local = macro["local search, 10 under way"]["200"]["finals"]
    assert local["controller_ahead"] < 0 and local["p"] < 0.05
    assert macro["random search"]["100"]["finals"]["p"] < 0.05
    for kind in ("found", "finals"):  # within a hundredth of a point of random search, with finalists behind it
        tests = {m: row["100"][kind]["test"] for m, row in mnist.items() if "without" not in m and m != "everything"}
        assert max(abs(test - tests["random search"]) for test in tests.values()) < 0.00011
        assert (tests["controller"] < tests["random search"]) == (kind == "finals")
    for budget, kind in itertools.product(("25", "50", "100", "200"), ("found", "finals")):
        for rival in rivals[0], rivals[2]:  # level with evolution and TPE, but for 200 with finalists
            row = macro[rival][budget][kind]
            behind = row["controller_ahead"] < 0 and row["p"] < 0.05
            assert behind == (budget == "200" and kind == "finals" and "TPE" in rival), (rival, budget, kind)
    paper, random = (mnist[m]["100"]["finals"] for m in ("paper's controller", "random search"))
    assert abs(paper["truth"] - random["truth"]) < paper["truth_ci"] + random["truth_ci"]
    assert macro["paper's controller"]["100"]["finals"]["truth"] < macro["random search"]["100"]["finals"]["truth"]
    for table in (macro, mnist):
        policy = [table["controller"][budget]["samples"]["truth"] for budget in ("25", "50", "100", "200")]
        assert policy == sorted(policy)
        picks = [row["200"]["found"]["truth"] for m, row in table.items() if "controller" not in m]
        assert table["controller"]["200"]["modes"]["truth"] > max(picks)
    assert all(abs(check["difference"]) < 0.02 for check in read("scaling.json")["checks"])
    assert all(50 < rate < 60 for rate in read("scaling.json")["children_per_second"].values())


def test_readme_shows_what_the_program_printed():
    shown = re.search(r"Some of the output:\n\n```\n(.*?)```", TEXT["README.md"], re.DOTALL)[1].splitlines()
    printed = (RESULTS / "mnist" / "report.txt").read_text().splitlines()
    assert len(shown) == 8 and set(shown) <= set(printed)


def test_the_first_page_is_short():
    assert len(TEXT["README.md"].splitlines()) <= 150 and len(TEXT["README.md"].split()) <= 2000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for target, section in re.findall(r"\]\(([^):]*)#([^)]*)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)", (page.parent / target if target else page).read_text(), re.MULTILINE)
        assert section in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], section


def test_promises_name_tests_that_exist():
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"`(test_\w+)(…?)`", TEXT["reliability.md"])
    assert len(names) > 20
    for name, more in names:
        assert re.search(rf"def {name}{'' if more else chr(92) + '('}", tests), name


def test_the_example_of_a_table_is_one(tmp_path):
    example = re.search(r"```csv\n(.*?)```", TEXT["benchmark.md"], re.DOTALL)[1]
    (tmp_path / "mine.csv").write_text(example)
    table = read_table(tmp_path / "mine.csv")
    assert table.num_choices == (2, 5) and table.trainings.shape == (10, 2)
    assert statistics.fmean(table.test) == pytest.approx(0.8663)


def test_the_converter_of_nasbench_macro_writes_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks = {f"{a}{b}000000": {"test_acc": [90.1, 90.2, 90.3], "mean_acc": 90.2} for a in "012" for b in "012"}
    Path("nas-bench-macro_cifar10.json").write_text(json.dumps(networks))
    (converter,) = (block for block in code("benchmark.md") if "nas-bench-macro" in block)
    exec(converter, {})
    assert read_table(Path("nasbench_macro.csv")).trainings.shape == (9, 3)


def code(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT[page], re.DOTALL)


def test_the_sampler_of_optuna_learns_and_may_be_told_in_any_order():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (example,) = (block for block in code("benchmark.md") if "BaseSampler" in block)
    assert len(example.splitlines()) <= 40
    names = {}
    exec(example, names)
    values = [trial.value for trial in names["study"].trials]
    assert len(values) == 40 == len({tuple(trial.params.values()) for trial in names["study"].trials})
    assert statistics.fmean(values[30:]) > statistics.fmean(values[:10]) + 2  # 15 on average at first, 24 at most

    study = optuna.create_study(direction="minimize", sampler=names["ControllerSampler"](names["space"]))
    trials = [study.ask(names["space"]) for _ in range(4)]
    study.tell(trials[2], 3.0)
    study.tell(trials[1], state=optuna.trial.TrialState.FAIL)
    assert not study.sampler.search.reward_of
    study.tell(trials[0], 5.0)
    study.tell(trials[3], 4.0)
    assert list(study.sampler.search.reward_of.values()) == [-5, -float("inf"), -3, -4]
