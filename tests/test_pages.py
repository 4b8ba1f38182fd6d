"""README and docs/ say what results/ says, and what they show works."""

import csv
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cifar10
from benchmarks.common import PANEL
from benchmarks.live_tables import children_of
from benchmarks.readme import PAGES, render
from benchmarks.search_quality import read_table, spend
from benchmarks.search_tables import TABLED, TEN_PENDING, all_numbers, holm, lead, rule_of_thumb
from benchmarks.summary import EVERYTHING, SAME_TIME
from evaluation import print_accuracies
from utils import VERSION, read_ledger

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


@pytest.mark.parametrize("name", [*TABLED, "singles", "pairs"])
def test_all_numbers_of_a_comparison_stand_beside_it(name):
    assert (RESULTS / f"search_quality_{name}.csv").read_text() == all_numbers(name)


def test_holms_correction():
    """Worked out by hand: the smallest of n p-values is multiplied by n, the next by n - 1, and none gets below it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def last(method: str) -> float:
    """Mean accuracy of the last 20 children of the searches on Fashion-MNIST, in %."""
    found = []
    for seed in ("", "-seed1", "-seed2"):
        lines = (RESULTS / f"fashionmnist-paper{method}{seed}" / "children.jsonl").read_text().splitlines()
        found += sorted(map(json.loads, lines), key=lambda row: row["child"])[-20:]
    return 100 * statistics.fmean(row["val_accuracy"] for row in found)


def claims_of_rewards() -> list[str]:
    """The numbers inside of the sentences of results.md on what a reward is worth."""
    fidelity = read("reward_fidelity.json")
    trainings = max(int(key.split("_")[-1]) for key in fidelity["judge"]["val"] if re.search(r"of_\d", key))
    reliable = [fidelity[of]["val"][f"reliability_of_{trainings}"] for of in ("judge", "judge in the best tenth")]
    recipes = fidelity["recipes"]
    default, whole = recipes["0.2 epochs"], recipes["1.0 epochs"]
    short_of = {key: default[f"{key}_below_best_ci"] for key in ("all_other", "best_tenth_other", "all_val")}
    elsewhere = fidelity["judge_on_other_images"]
    best_tenth = sorted(row["best_tenth_other"] for row in recipes.values())
    behind_on_same = [name for name, row in recipes.items() if row["all_val_below_best_ci"][0] > 0]
    assert recipes.keys() - behind_on_same == {"0.6 epochs", "1.0 epochs"}
    assert short_of["all_other"][0] <= 0 and short_of["best_tenth_other"][0] <= 0 < short_of["all_val"][0]
    assert whole["all_other"] == max(row["all_other"] for row in recipes.values())
    assert [name for name, row in recipes.items() if row["seconds"] < default["seconds"]] == ["0.15 epochs"]
    assert recipes["0.15 epochs"]["best_tenth_other"] == best_tenth[1] and default["best_tenth_other"] > best_tenth[4]
    assert default["seconds"] < recipes["0.6 epochs"]["seconds"] / 2
    return [
        f"{fidelity['networks'] - fidelity['of the best tenth']} over the whole range of the space and "
        f"{fidelity['of the best tenth']} of its best tenth",
        f"{trainings} times each.",
        f"is below one epoch by {whole['all_other'] - default['all_other']:.2f} "
        "({:.2f} to {:.2f})".format(*short_of["all_other"]),
        f"below the best by {best_tenth[-1] - default['best_tenth_other']:.2f} "
        "({:.2f} to {:.2f})".format(*short_of["best_tenth_other"]),
        f"below one epoch, {default['all_val']:.2f} against {whole['all_val']:.2f}, significantly "
        "({:.2f} to {:.2f})".format(*short_of["all_val"]),
        "{:.0f}% of its variance is reproducible, in the best tenth {:.0f}%".format(*(100 * of for of in reliable)),
        f"On other images it is only {100 * elsewhere['all']:.0f}% and {100 * elsewhere['best_tenth']:.0f}%",
        f"{default['all_other']:.2f} over all networks, and {default['best_tenth_other']:.2f} in the best tenth",
    ]  # fmt: skip


def claims_of_networks() -> dict[str, list[str]]:
    """Those on networks that were found, and on others beside them, by page."""
    found_fashion = read("fashionmnist-two-layers", "evaluation.json")
    assert read("mnist", "best.json")["architecture"] == read("mnist-random", "best.json")["architecture"]
    tested = {row["name"]: row for row in read("mnist", "evaluation.json")["references"]}
    ready_made = [tested[name] for name in ("ResNet-18", "MobileNetV3-small")]
    fashion = {row["name"]: row for row in found_fashion["references"]}
    largest, lenet, random = (fashion[name] for name in ("largest network", "LeNet-5's layers", "random networks"))
    assert abs(found_fashion["top1_mean"] - random["top1_mean"] - 0.01) < 0.0005
    assert abs(found_fashion["top1_mean"] - lenet["top1_mean"] - 0.02) < 0.0005
    assert 0 < found_fashion["top1_mean"] - largest["top1_mean"] < 0.003
    learned, example = read("nas_in_one_file.json"), ROOT / "examples" / "nas_in_one_file.py"
    two, digits = (read(search, "evaluation.json") for search in ("fashionmnist", "digits"))
    deep = read("mnist4", "evaluation.json")
    deep_minutes = (deep["seconds"] + read("mnist4", "time.json")["wall"]) / 60
    assert deep["recipe"]["epochs"] == read("mnist", "evaluation.json")["recipe"]["epochs"] == 8
    with (RESULTS / "mnist_space.csv").open() as file:
        in_the_space = {
            row["architecture"]: (float(row["val_0"]) + float(row["val_1"])) / 2 for row in csv.DictReader(file)
        }
    minutes = (two["seconds"] + read("fashionmnist", "time.json")["wall"]) / 60
    return {
        "README.md": [
            f"| {read('fashionmnist-two-layers', 'time.json')['wall'] / 60:.1f} min (one process) | ~4 min "
            f"| {found_fashion['top1_mean']:.2%} |",
            f"| 2 min | {two['seconds'] / 60:.0f} min | {two['top1_mean']:.2%} |",
            f"| MNIST | 2 min | 6 min | {read('mnist', 'evaluation.json')['top1_mean']:.2%} |",
            f"| 2 min | 13 s | {digits['top1_mean']:.2%} (std {100 * digits['top1_std']:.2f}) |",
            f"is the paper's method in {len(example.read_text().splitlines())} lines",
            f"get better by {100 * learned['gain']:.1f} ± {100 * learned['gain_ci']:.1f} points",
            f"is nearly as good: {largest['top1_mean']:.2%} on Fashion-MNIST",
        ],
        "own_data.md": [f"{two['recipe']['epochs']:.0f} epochs reach {two['top1_mean']:.2%}"],
        "results.md": [
            f"has {1 - found_fashion['parameters'] / largest['parameters']:.0%} fewer parameters",
            "{:.2f} and {:.2f}% on MNIST, {:.2f} and {:.2f}% on Fashion-MNIST".format(
                *(100 * of[row["name"]]["top1_mean"] for of in (tested, fashion) for row in ready_made)
            ),
            f"on MNIST it has {100 * in_the_space['k3f32p2-k3f32p2']:.2f}%, the space "
            f"{100 * statistics.fmean(in_the_space.values()):.2f}% on average",
            "{:.2f} and {:.1f} epochs".format(*(row["epochs"] for row in ready_made)),
            f"finds `{two['architecture']}`, with {two['parameters']:,} parameters. Trained for "
            f"{two['recipe']['epochs']:.0f} epochs on all images it has {100 * two['top1_mean']:.2f} ± "
            f"{100 * two['top1_std']:.2f}% on the test images",
            f"both commands together take {minutes:.0f} minutes",
            f"On MNIST `--num_layers 4` finds `{deep['architecture']}`, with {deep['parameters']:,} parameters. "
            f"After the same eight epochs it has {100 * deep['top1_mean']:.2f} ± {100 * deep['top1_std']:.2f}% "
            f"on the test images, in one search; both commands together take {deep_minutes:.0f} minutes",
        ],
    }  # fmt: skip


def seconds_of(search: str) -> float:
    """Core-seconds of a child of a recorded search, on average."""
    files = (RESULTS / search / f"{name}.jsonl" for name in ("children", "finalists"))
    return statistics.fmean(json.loads(line)["seconds"] for file in files for line in file.read_text().splitlines())


def claims() -> dict[str, list[str]]:
    """The others, by page."""
    speed, cost = read("child_speed.json"), read("paper_cost.json")
    live = read("live_check.json")["searches"]
    replays = sum(run["replay_is_the_same"] for run in live)
    again = [sum(run[key] for run in live) for key in ("equal", "trained_again")]
    seconds = 3600 * speed["cores"] / speed["children_per_hour"]
    late = [
        read("search_quality_nasbench_macro_800.json")["methods"][m]["late"]["4800"]
        for m in ("800 workers", "random search")
    ]
    n = {name: budgets(name, "controller")["100"]["found"]["n"] for name in ("mnist", "fashionmnist")}
    (fresh,) = {read(f"search_quality_{name}.json")["with_fresh"] for name in ("mnist", "fashionmnist")}
    assert n["mnist"] == n["fashionmnist"]
    before_and_after = read("search_time.json")
    scaling = read("scaling.json")
    rates = scaling["children_per_second"]
    busy, waiting = ({row["workers"]: row for row in rows} for rows in scaling["simulated"].values())
    return {
        "results.md": [
            f"each search is repeated {n['mnist']} times on it",
            f"only the {fresh} networks with the best rewards",
            f"Each of the {replays} replays samples and picks what its search did",
            "{} of {} children that were trained again".format(*again),
            f"A child takes {seconds:.1f} core-seconds on average over {len(PANEL)} architectures",
            "of 100, {} are children and {} are finalists'".format(*spend(100)),
            f"{speed['ratio']:.0f} times faster",
            f"test accuracy is {speed['test_accuracy']:.2%} where that loop reached "
            f"{speed['original_test_accuracy']:.2%} ({len(speed['accuracy_architectures'])} architectures)",
            "took {:.0f} seconds on an idle machine".format(before_and_after["1.1.0"]["wall"]),
            f"AVX-512, {before_and_after['ratio']:.0%} of version 1.0.0's {before_and_after['1.0.0']['wall']:.0f} (",
            f"on average {seconds_of('mnist'):.1f} core-seconds in the recorded search on MNIST, "
            f"{seconds_of('fashionmnist-two-layers'):.1f} in the one on Fashion-MNIST",
            "and {:.0f} min {:.0f} s in the recorded run".format(*divmod(read("mnist", "time.json")["wall"], 60)),
        ],
        "paper_space.md": [
            "have {:.1f} on average, random search's {:.1f}".format(*map(last, ("", "-random"))),
            f"{cost['core_years']:.0f} years on one core",
            f"{cost['flops'] / 1e14 / 86400:.0f} days on a GPU that sustains 100 TFLOP/s",
        ],
        "cluster.md": [
            f"8 workers train {busy[8]['used_without_drain']:.0%} of the time until the last child starts, and 800 "
            f"workers {busy[800]['used_without_drain']:.0%}; with the end of the search",
            f"run out of children, {busy[8]['used']:.0%} and {busy[800]['used']:.0%}. With lag 0 800 workers would "
            f"train {waiting[800]['used_without_drain']:.0%} of it",
            f"{rates['local']:.0f} children a second on one machine, and {rates['ray']:.0f} through Ray",
            f"about {rates['local'] * scaling['mean_seconds'] // 10 * 10:.0f} workers",
            f"({scaling['mean_seconds']:.1f} seconds on average)",
            f"have {100 * late[0]['truth']:.2f} after 4,800 children",
            f"random ones {100 * late[1]['truth']:.2f} ({late[0]['n']} searches)",
        ],
    }  # fmt: skip


def claims_of_the_gpu() -> dict[str, list[str]]:
    """What one run on a GPU has shown, by page."""
    gpu = read("gpu.json")
    search, evaluation = gpu["default_commands"]["rows"]
    same, paper, step = gpu["accuracy"], gpu["paper"], gpu["step"]["rows"][1]
    assert not gpu["rehearsal"] and (step["graph"], search["failed"]) == (False, 0)
    assert same["equal_within_noise"] and same["same_weights_again"] == len(same["jobs"]) == 9
    assert gpu["small_commands"]["one_and_three_workers_give_the_same_ledger"] and gpu["memory"]["is_a_failed_child"]
    rates = {(row["device"], row["workers"]): row["children_per_hour"] for row in gpu["throughput"]["rows"]}
    faster = 3600 * read("scaling.json")["children_per_second"]["local"] / rates["gpu, mps", 16]
    small = gpu["small_commands"]["rows"][:2]
    times = search["seconds"], evaluation["seconds"]
    seconds = "{:.0f} and {:.0f}".format(*times)
    assert search["gpu"] == "NVIDIA H200" and max(search["seconds"], evaluation["seconds"]) < 60
    return {
        "README.md": ["| {:.0f} s | {:.0f} s | {:.2%} |".format(*times, evaluation["top1_mean"])],
        "gpu.md": [
            f"take {seconds} seconds, and the pick has {100 * evaluation['top1_mean']:.2f} ± "
            f"{100 * evaluation['top1_std']:.2f}%",
            f"{step['launches']:.0f} *kernels*",
            f"{rates['gpu, mps', 16] / rates['cpu', 16]:.1f} times as many children as the 16 cores "
            f"next to it, and {rates['gpu, mps', 16] / rates['cpu', 2]:.0f} times as many as two",
            f"is {rates['gpu, mps', 16] / 3600:.0f} a second; the controller can submit [{faster:.1f} times as many]",

            f"{100 * same['mean_difference']:.2f} ± {100 * same['half_of_the_95_percent_interval']:.2f} points",
            "takes {1:.0f} on the GPU and {0:.0f} on the CPU".format(*(row["seconds"] for row in small)),
            f"varies by {100 * same['std_of_a_training']:.2f} (standard deviation)",
        ],
        "paper_space.md": [
            f"sustained {3 * paper['flops'] * paper['images'] / paper['seconds_an_epoch'] / 1e12:.0f} in an epoch"
        ],
    }  # fmt: skip


def test_numbers_in_sentences_equal_the_files_in_results():
    for page, sentences in [
        ("results.md", claims_of_rewards()),
        *claims_of_networks().items(),
        *claims().items(),
        *claims_of_the_gpu().items(),
    ]:
        text = " ".join(TEXT[page].split())
        for sentence in sentences:
            assert sentence in text, f"{page} does not say: {sentence}"


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    latest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest[1] == VERSION and f"\nversion: {VERSION}\ndate-released: {latest[2]}\n" in citation


def ahead(row: dict) -> bool:
    """Whether the controller is ahead, and not by chance."""
    return row["controller_ahead"] > 0 and row["p"] < 0.05


def behind(row: dict) -> bool:
    return row["controller_ahead"] < 0 and row["p"] < 0.05


def test_what_is_said_of_the_comparison_is_so():
    mnist, fashion, macro = (
        {method: budgets(name, method) for method in read(f"search_quality_{name}.json")["methods"]}
        for name in ("mnist", "fashionmnist", "nasbench_macro")
    )
    evolution, local, tpe = TEN_PENDING
    for table in (mnist, fashion, macro):
        policy = [table["controller"][budget]["samples"]["share"] for budget in ("25", "50", "100", "200")]
        assert policy == sorted(policy)
    for table in (mnist, fashion):  # ahead of random search, in the same time, too
        for random in ("random search", SAME_TIME):
            for budget in ("25", "50", "100", "200")[table is mnist :]:
                assert ahead(table[random][budget]["found"])
            assert ahead(table[random]["100"]["finals"]) and ahead(table[random]["200"]["finals"])
        for budget, baseline in itertools.product(("25", "50", "100", "200"), TEN_PENDING):
            assert not behind(table[baseline][budget]["found"]) and not behind(table[baseline][budget]["finals"])
        rule = rule_of_thumb("mnist" if table is mnist else "fashionmnist")
        assert rule < table["random search"]["50"]["found"]["truth"] + 0.0001
        assert rule < table["random search"]["100"]["found"]["truth"]
        paper = table["paper's controller"]["100"]["finals"]
        assert paper["truth"] < table["random search"]["100"]["finals"]["truth"] + paper["truth_ci"]
    for budget, kind in itertools.product(("50", "100", "200"), ("found", "finals")):
        assert ahead(macro["random search"][budget][kind])
    for baseline, budget in itertools.product((evolution, tpe), ("25", "50", "100", "200")):
        assert not ahead(macro[baseline][budget]["found"]) and not behind(macro[baseline][budget]["found"])
    for baseline, budget in itertools.product((evolution, tpe), ("25", "50", "100", "200")):
        row, leads = macro[baseline][budget]["finals"], ((evolution, "100"), (evolution, "200"), (tpe, "200"))
        assert ahead(row) == ((baseline, budget) in leads) and not behind(row)
        assert row["p_all"] > 0.05
    for baseline, budget in itertools.product(TEN_PENDING, ("50", "100", "200")):
        assert ahead(mnist[baseline][budget]["found"]) == ((baseline, budget) != (tpe, "50"))
    for baseline in TEN_PENDING:
        assert not ahead(mnist[baseline]["25"]["found"]) and ahead(mnist[local]["100"]["finals"])
    for baseline, budget in itertools.product((evolution, tpe), ("50", "100", "200")):  # by up to a tenth
        assert 0.0004 < fashion[baseline][budget]["found"]["controller_ahead"] < 0.0011
        p = fashion[baseline][budget]["found"]["p"]
        assert round(p, 2) == 0.05 if budget == "50" else p > 0.05
        assert not ahead(fashion[baseline][budget]["finals"])
    for budget in ("50", "100", "200"):  # by reward alone
        ours = fashion["controller"][budget]
        assert 0.0004 < ours["finals_reward"]["truth"] - ours["finals"]["truth"] < 0.00081
    for budget in ("25", "50", "100", "200"):
        assert 0.0019 < fashion["random search"][budget]["found"]["controller_ahead"] < 0.0030
    assert not any(ahead(mnist[evolution][budget]["finals"]) for budget in ("100", "200"))
    luckiest, random = (mnist[m]["200"]["found"] for m in (EVERYTHING, "random search"))
    assert abs(luckiest["truth"] - random["truth"]) < 0.0002
    ours = mnist["controller"]["200"]
    assert ours["found_reward"]["truth"] - mnist[evolution]["200"]["found"]["truth"] < 0.0003  # the choice decides
    assert mnist[evolution]["200"]["found_smoothed"]["rank"] < mnist[evolution]["200"]["found"]["rank"] / 2
    tests = {m: row["100"]["finals"]["test"] for m, row in mnist.items()}
    assert max(tests.values()) - min(tests.values()) <= 0.00031
    tests = {m: row["100"]["finals"]["test"] for m, row in fashion.items()}
    assert all(tests[m] > tests["random search"] + 0.001 for m in ("controller", evolution, tpe))
    scaling = read("scaling.json")
    assert all(abs(check["difference"]) < 0.04 for check in scaling["checks"]) and 3 < scaling["slowest_child"] < 3.3
    assert all(170 < rate < 200 for rate in scaling["children_per_second"].values())


def test_what_is_called_significant_survives_holms_correction():
    stars = {}
    for name in TABLED:
        for line in lead(name).splitlines()[2:]:
            method, *cells = line.strip("| ").split(" | ")
            stars[name, method] = ["*" in cell for cell in cells]  # 50, 100, 200, 100 with finalists
    evolution, tpe = "regularised evolution, 10 pending", "TPE, 10 pending"
    for name in TABLED:
        assert stars[name, "random search"] == [name != "nasbench201", True, True, True]
    assert stars["mnist", evolution] == [False, True, True, False] and stars["mnist", tpe] == [
        False,
        False,
        True,
        False,
    ]
    for name, method in itertools.product(("fashionmnist", "nasbench_macro"), (evolution, tpe)):
        assert not any(stars[name, method])
    behind_at_first = read("search_quality_nasbench201.json")["methods"]["TPE, 10 under way"]["budgets"]["50"]["found"]
    assert not any(stars["nasbench201", evolution]) and stars["nasbench201", tpe] == [True, False, False, False]
    assert behind(behind_at_first)


def test_what_is_said_of_nasbench201_is_so():
    table = {method: budgets("nasbench201", method) for method in read("search_quality_nasbench201.json")["methods"]}
    evolution, _, tpe = TEN_PENDING
    assert all(of["100"]["found"]["n"] == 100 for of in table.values())
    for budget, kind in itertools.product(("25", "50", "100", "200"), ("found", "finals")):
        row = table["random search"][budget][kind]
        assert not behind(row) and ahead(row) == (budget in ("50", "100", "200"))
        for baseline in (evolution, tpe):
            is_behind = budget == "50" and (kind == "found" or baseline == tpe)
            assert behind(table[baseline][budget][kind]) == is_behind and not ahead(table[baseline][budget][kind])
    for budget, kind in itertools.product(("25", "50", "100", "200"), ("found", "finals")):
        ours = table["controller"][budget]
        gap = ours[f"{kind}_reward"]["truth"] - ours[kind]["truth"]
        assert (0 < gap < 0.00075) == ((budget, kind) != ("200", "finals"))
    methods = read("search_quality_nasbench201.json")["methods"]
    late = [round(methods[m]["share_in_steps_of_20"][-1], 2) for m in ("controller", evolution, tpe)]
    said = (
        "the last 20 of 200 reach {} of the [possible gain](#what-the-policy-has-learned), evolution's {} and TPE's {}."
    )
    assert said.format(*late) in " ".join(TEXT["results.md"].split())
    tested = {m: of["100"]["finals"]["test"] for m, of in table.items()}
    for method in ("controller", evolution, tpe):
        assert 0.0035 < tested[method] - tested["random search"] < 0.0045


def test_what_is_said_of_cifar10_beside_random_search_is_so():
    """The controller's last networks are better and larger, and the picks are level, in each pair of searches."""
    said = " ".join(TEXT["cifar10.md"].split())
    found = cifar10.compare_searches(RESULTS, "cifar10-paper", cifar10.SEEDS)
    leads = [100 * (mine - other) for mine, other in found["last_quarter"]]
    assert said.count(f"by {min(leads):.1f} to {max(leads):.1f} points") == 2

    equal = [100 * lead for lead in cifar10.leads_at_equal_size(RESULTS, "cifar10-paper", cifar10.SEEDS)]
    assert "ahead by {:.1f}, {:.1f} and {:.1f} points (a parabola".format(*equal) in said
    random = [cifar10.folder(RESULTS, "cifar10-paper", "random", seed) for seed in cifar10.SEEDS]
    flops = np.concatenate([cifar10.flops_of(where) for where in random])
    accuracies = np.concatenate([cifar10.accuracies_of(where) for where in random])
    assert f"correlates with FLOPs by {np.corrcoef(flops, accuracies)[0, 1]:.2f}" in said

    best = {k: [100 * lead[-1] for lead in found["lead_of_best"][k]] for k in ("15", "5", "1")}
    ranges = {k: f"by {min(ends):.1f} to {max(ends):.1f}" for k, ends in best.items()}
    assert f"the best 15 are ahead {ranges['15']} points, the best 5 {ranges['5']}, the best {ranges['1']}" in said

    picks = []
    for seed in cifar10.SEEDS:
        of = [cifar10.folder(RESULTS, "cifar10-paper", strategy, seed) for strategy in ("reinforce", "random")]
        mine, other = (read(where.name, "best.json")["val_accuracy"] for where in of)
        picks.append(100 * (mine - other))
    assert "picks differ by {:.2f}, {:.2f} and {:.2f} points".format(*picks) in said
    assert max(map(abs, picks)) < 0.5  # the standard deviation of a reward is larger

    differences, longer, largest = [], [], 0
    for seed in cifar10.SEEDS:
        walls = []
        for strategy in ("reinforce", "random"):
            where = cifar10.folder(RESULTS, "cifar10-paper", strategy, seed)
            children, again = (read_ledger(where / name)[0] for name in ("children.jsonl", "finalists.jsonl"))
            pairs = [(children[child]["val_accuracy"], row["val_accuracy"]) for child, row in again.items()]
            some = [first - second for first, second in pairs]
            differences += [difference - statistics.fmean(some) for difference in some]  # the first ones are chosen
            walls.append(read(where.name, "time.json")["wall"])
            largest = max(largest, *(row["parameters"] for row in children.values()))
        longer.append(walls[0] / walls[1] - 1)
    noise = 100 * math.sqrt(statistics.fmean(d**2 for d in differences) / 2)
    assert f"varies by {noise:.1f} points (standard deviation, from the {len(differences)} finalists)" in said
    assert f"searches took {min(longer):.0%} to {max(longer):.0%} longer" in said
    assert f"have up to {largest:,} parameters" in said


def test_what_is_said_of_cifar10s_references_is_so():
    where = RESULTS / "cifar10-paper"
    found = cifar10.after_eight_epochs(where, cifar10.pick_of(where))
    others = {row["name"]: row for row in found["references"]}
    assert 0.065 < found["top1_mean"] - others["random networks"]["top1_mean"] < 0.075
    assert abs(found["top1_mean"] - others["largest network"]["top1_mean"]) < 0.002
    said = " ".join(TEXT["cifar10.md"].split())
    ahead, larger = [], []
    for seed in cifar10.SEEDS:
        of = [cifar10.folder(RESULTS, "cifar10-paper", strategy, seed) for strategy in ("reinforce", "random")]
        mine, other = (cifar10.after_eight_epochs(where, cifar10.pick_of(where)) for where in of)
        ahead.append(f"{100 * (mine['top1_mean'] - other['top1_mean']):.1f}")
        larger.append(mine["flops"] > other["flops"])
    leads = "{}, {} and {}".format(*ahead)
    assert f"ahead, by {leads} points. They are also the larger ones" in said and all(larger)
    assert f"they are {leads} points ahead, but also larger" in said
    hand_made = cifar10.after_eight_epochs(RESULTS / "cifar10-paper", cifar10.HAND_MADE)
    assert f"by {100 * (hand_made['top1_mean'] - found['top1_mean']):.1f} points with less than half" in said
    assert hand_made["parameters"] < found["parameters"] / 2
    assert 0.95 < hand_made["flops"] / found["flops"] < 1.05
    assert hand_made["top1_mean"] > max(
        cifar10.after_eight_epochs(where, cifar10.pick_of(where))["top1_mean"]
        for where in (cifar10.folder(RESULTS, "cifar10-paper", "reinforce", seed) for seed in cifar10.SEEDS)
    )
    assert 0.45 < others["ResNet-18"]["epochs"] / found["recipe"]["epochs"] < 0.55
    accuracies, costs = [], []
    for final in cifar10.summarize_finals(RESULTS / "cifar10-paper"):
        accuracies.append(1 - final["test_error"])
        costs.append(final["flops"] / final["n"] / 1e15)
    ours = "ours reach {:.1%} with {:.2f}, and {:.1%} with {:.2f}"
    assert ours.format(accuracies[0], costs[0], accuracies[1], costs[1]) in said


def test_what_is_said_of_cifar10s_settings_is_so():
    trained = csv.DictReader((RESULTS / "cifar10_final.csv").open())
    accuracy = {row["change"]: float(row["val_accuracy"]) for row in trained if row["seed"] == "0"}
    base = accuracy["unchanged: shifts by 1"]
    lower = [base - accuracy[change] for change in ("shifts by 4", "half the learning rates", "no label smoothing")]
    assert "0.8 to 1.2 points lower" in TEXT["cifar10.md"]
    assert min(lower) > 0.0075 and max(lower) < 0.0125
    assert abs(base - accuracy["shifts by 2"]) < 0.005 > abs(base - accuracy["twice the learning rates"])


def test_what_is_said_of_cifar10s_rewards_is_so():
    said, found = " ".join(TEXT["cifar10.md"].split()), read("cifar10_rewards.json")
    recipes = found["recipes"]
    default, whole = recipes["9,000 images"], recipes["45,000 images"]
    assert f"is {default['correlation']:.2f} instead of {whole['correlation']:.2f}" in said
    assert default["above_default_ci"] == [0, 0] and whole["above_default_ci"][0] > 0
    assert f"{found['judge']['reliability_of_one']:.0%} of their variance" in said and found["networks"] == 24

    level = [name for name, row in recipes.items() if row["below_best_ci"][0] <= 0]
    assert level == ["45,000 images", "45,000 images, mirrored"]
    in_equal_time = {name: row["in_equal_time"] for name, row in recipes.items()}
    assert max(in_equal_time, key=lambda name: in_equal_time[name]["expected_best"]) == "9,000 images"
    for name in ("18,000 images", "45,000 images"):
        low, high = in_equal_time[name]["above_default_ci"]
        assert low < 0 < high
    assert f"for a whole epoch by {low:.2f} to {high:.2f}" in said

    for change in ("mirrored", "twice the rates", "float32"):
        low, high = recipes[f"9,000 images, {change}"]["above_default_ci"]
        assert low < 0 < high
    low, high = recipes["9,000 images, half the rates"]["above_default_ci"]
    assert f"Half the rates are worse, by {-high:.2f} to {-low:.2f}" in said and high < 0
    slower = recipes["9,000 images, float32"]["seconds"] / recipes["9,000 images, mirrored"]["seconds"]
    assert f"float32, which takes {slower:.1f} times as long" in said
    assert 0.7 < 1 / slower < 0.8  # "three quarters of the time"


def test_what_is_said_of_cifar10s_final_training_is_so():
    said = " ".join(TEXT["cifar10.md"].split())
    final, wide = (read("cifar10-paper", f"evaluation{suffix}.json") for suffix in ("", "-40_more_filters"))
    search = read("cifar10-paper", "time.json")["wall"] / 60
    training, wide_training = final["seconds"] / 60, wide["seconds"] / 60
    errors = (
        f"{1 - final['top1_mean']:.1%} test error in an hour, and {1 - wide['top1_mean']:.1%} in an hour and a half"
    )
    assert f"Two cores reach {errors}" in said
    assert f"two cores reach [{1 - wide['top1_mean']:.1%} test error]" in TEXT["README.md"]
    assert 50 < search + training < 70 and 80 < search + wide_training < 100
    assert f"The paper's space: {search:.0f} and {training:.0f} minutes" in said
    assert f"final training takes {wide_training:.0f} minutes" in said
    assert f"| {search:.0f} min | {wide_training:.0f} min | {wide['top1_mean']:.2%} |" in TEXT["README.md"]


def test_the_noise_of_a_single_search_is_that_of_its_report():
    noise = []
    for search in ("mnist", "fashionmnist-two-layers"):
        noise.append(re.search(r"differences below (\S+) points", (RESULTS / search / "report.txt").read_text())[1])
    said = "below {} points on MNIST, and below {} on Fashion-MNIST".format(*noise)
    assert said in " ".join(TEXT["results.md"].split())


def test_what_is_said_of_each_change_is_so():
    for name in ("mnist", "nasbench_macro"):
        methods = read(f"search_quality_{name}_changes.json")["methods"]
        row = {method: of["budgets"]["100"] for method, of in methods.items() if "samples" in of["budgets"]["100"]}
        learned = {method for method, of in row.items() if "alone" in method and of["samples"]["share"] > 0.3}
        assert learned == {"network and learning rate alone"}
        missing = {method: of["found"] for method, of in row.items() if method.startswith("without")}
        assert len(missing) == 5 and all(of["controller_ahead"] > 0 and of["n"] == 40 for of in missing.values())
        for change in ("network and learning rate", "ranks"):
            assert missing[f"without {change}"]["p"] < 0.05
        for change in ("entropy bonus", "replay", "batches of 2"):
            of = missing[f"without {change}"]
            assert of["p"] > 0.05 and 0.00015 < of["controller_ahead"] < 0.00095
        assert row["without replay"]["samples"]["truth"] > row["controller"]["samples"]["truth"] - 0.001
        assert methods["without replay"]["fewest_children"] < 100 == methods["controller"]["fewest_children"]


def test_what_is_said_of_lags_is_so():
    lags = read("search_quality_nasbench_macro_lags.json")["methods"]
    found = {m: {b: row["found"]["truth"] for b, row in of["budgets"].items()} for m, of in lags.items()}
    for budget, lag in itertools.product(("100", "200"), ("lag 1", "lag 2", "lag 4", "lag 9")):
        assert found[lag][budget] > found["lag 0"][budget] - 0.0005
    assert found["lag 9"]["25"] <= found["random search"]["25"] < found["lag 4"]["25"]
    workers = read("search_quality_nasbench_macro_800.json")["methods"]
    for budget in ("2400", "4800"):
        pick = {m: of["budgets"][budget]["found"]["truth"] for m, of in workers.items()}
        assert pick["800 workers"] <= pick["random search"]


def test_what_is_said_of_final_trainings_is_so():
    fashion, mnist = (read("final_training.json")[dataset] for dataset in ("FashionMNIST", "MNIST"))
    value = {change: row["val_accuracy"] for change, row in fashion.items()}
    base = value["8 epochs"]
    assert {row["n"] for row in fashion.values()} == {2}
    assert base > max(value[f"{n} epochs"] for n in (2, 4)) + 0.005 and value["16 epochs"] > base + 0.003
    assert 0 <= value["80 epochs"] - value["16 epochs"] < 0.002  # within chance
    assert max(value["averaged weights"], value["twice the hidden units"]) < base
    assert value["global average pooling instead"] < base - 0.03
    assert abs(value["not mirrored, judged from one side"] - base) < 0.001
    assert max(value["shifts by 2"], value["no label smoothing"]) < base - 0.003
    assert abs(value["half the learning rates"] - base) < 0.003 and 0.004 < base - value["judged from one side"] < 0.006
    for deep in ("3 layers, 16 epochs", "4 layers, 16 epochs"):
        assert fashion["8 epochs"]["seconds"] < fashion[deep]["seconds"] < fashion["16 epochs"]["seconds"]
        assert base <= value[deep] <= value["16 epochs"]
    two, three, four = (read("depths.json")[layers] for layers in ("2", "3", "4"))
    for deep in (three, four):
        assert -0.004 < deep["val_accuracy"] - two["val_accuracy"] < 0 and deep["parameters"] < two["parameters"] / 3
    deep = [row["test_accuracy"] for change, row in mnist.items() if "layers" in change]
    assert min(deep) > max(row["test_accuracy"] for change, row in mnist.items() if "layers" not in change)


def test_what_is_said_of_large_spaces_is_so():
    singles, pairs = (read(f"search_quality_{name}.json")["methods"] for name in ("singles", "pairs"))
    sequential = pairs["regularised evolution, 10 and 5"]
    for budget in ("50", "100", "200"):
        for method in singles.keys() - {"controller", "sequential controller"}:
            row = singles[method]["budgets"][budget]["found"]
            assert row["n"] == 100 and ahead(row)
        for method in (*TEN_PENDING, "random search", "paper's controller"):
            assert ahead(pairs[method]["budgets"][budget]["found"])
        assert 0.15 < pairs[TEN_PENDING[0]]["budgets"][budget]["found"]["controller_ahead"] < 0.25
        assert behind(sequential["budgets"][budget]["found"])
        found = pairs["sequential controller"]["budgets"][budget]["found"]
        other = sequential["budgets"][budget]["found"]
        assert abs(found["truth"] - other["truth"]) < found["truth_ci"]
    tpe = {budget: row["found"] for budget, row in pairs["TPE"]["budgets"].items()}
    assert not ahead(tpe["50"]) and not behind(tpe["50"]) and not ahead(tpe["100"]) and ahead(tpe["200"])
    assert behind(pairs["sequential controller"]["budgets"]["50"]["found"])
    assert all(ahead(singles["sequential controller"]["budgets"][budget]["found"]) for budget in ("100", "200"))
    for space in (singles, pairs):
        assert space["sequential controller"]["budgets"]["200"]["found"]["n"] == 24
        assert abs(space["paper's controller"]["last_40"]["truth"]) < 0.1


@pytest.mark.parametrize(
    ("page", "search", "lines"), [("README.md", "fashionmnist-two-layers", 5), ("own_data.md", "digits", 7)]
)
def test_pages_show_what_the_program_printed(page, search, lines, capsys):
    shown = re.search(r"(?:output of both|other lines):\n\n```\n(.*?)```", TEXT[page], re.DOTALL)[1].splitlines()
    print_accuracies(read(search, "evaluation.json"))
    printed = (RESULTS / search / "report.txt").read_text() + capsys.readouterr().out
    assert len(shown) == lines and set(shown) <= set(printed.splitlines())


def test_the_search_on_the_first_page_found_its_winner_by_learning():
    children = children_of("fashionmnist-two-layers")
    first, last = statistics.fmean(children[:20]), statistics.fmean(children[-20:])
    assert f"grows from {first:.1%} (first 20) to {last:.1%} (last 20)" in " ".join(TEXT["README.md"].split())
    assert read("fashionmnist-two-layers", "best.json")["child"] > 40


def test_results_can_be_read():
    visible = re.sub("<details>.*?</details>", "", TEXT["results.md"], flags=re.DOTALL).splitlines()
    assert sum(bool(line) and not line.startswith("<!--") for line in visible) <= 250


def test_the_first_page_is_short():
    assert len(TEXT["README.md"].splitlines()) <= 170 and len(TEXT["README.md"].split()) <= 1300


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)|src=\"([^\"]*)\"", page.read_text()):
        target = "".join(target)
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


def test_the_example_of_an_own_method_climbs():
    (example,) = (block for block in code("benchmark.md") if "class MyClass" in block)
    names = {}
    exec(example, names)
    search = names["MyClass"]((4,) * 8, seed=0)
    for _ in range(200):
        network = tuple(search.ask())
        search.tell(network, sum(network))
    assert sum(search.best) > 20  # 12 on average at first, 24 at most


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
