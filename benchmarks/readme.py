"""Draw README's figures and fill its marked blocks, from the files in results/.

python -m benchmarks.readme              from results/
python -m benchmarks.readme --collect    first copy the finished searches in runs/ to results/
"""

import argparse
import csv
import json
import re
import shutil
import statistics

from benchmarks import figures
from benchmarks.common import CHILDREN_PER_UPDATE, PANEL, RESULTS, recommended_lag
from utils import ROOT, duration

SEARCHES = {"mnist": "policy gradient (`generate`)", "mnist-random": "random search (`generate --strategy random`)"}
PAPER_SPACE = {"policy gradient": "fashionmnist-paper", "random search": "fashionmnist-paper-random"}  # and more seeds
SEEDS = {0: "", 1: "-seed1", 2: "-seed2"}
FASHION = {
    f"{name}{suffix}": f"paper's space, {method}, seed {seed}"
    for method, name in PAPER_SPACE.items()
    for seed, suffix in SEEDS.items()
}
FASHION["fashionmnist-original"] = "small space, policy gradient, seed 0"
FILES = ("best.json", "best_child.pt", "children.jsonl", "config.json", "controller.pt", "evaluation.json",
         "finalists.jsonl", "search.png", "best.png", "time.json")  # fmt: skip
TABLES = {"mnist": "MNIST, validation", "nasbench_macro": "NAS-Bench-Macro (CIFAR-10), test"}


def collect() -> None:
    """Copy what the finished searches in runs/ left, without event files; pictures of the policy gradient's seed 0 only."""
    for name in (*SEARCHES, *FASHION):
        run = ROOT / "runs" / name
        if (run / "best.json").exists():
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            left = () if name == "mnist" else (".pt", ".png") if "random" in name or "seed" in name else (".pt",)
            for file in FILES:
                if (run / file).exists() and not file.endswith(left):
                    shutil.copy(run / file, RESULTS / name / file)


def read(*parts: str) -> dict:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def search_table(searches: dict[str, str], timed: bool) -> tuple[list[str], list[dict]]:
    """The lines of a table of searches, and the evaluation of what each found."""
    lines = [
        "| search | best architecture | validation accuracy, two trainings | test top-1 | test top-5 | parameters "
        "| children trained |" + " search time |" * timed,
        "|---|---|---|---|---|---|---|" + "---|" * timed,
    ]
    evaluations = [read(name, "evaluation.json") for name in searches if (RESULTS / name / "evaluation.json").exists()]
    evaluations = {evaluation["architecture"]: evaluation for evaluation in evaluations}
    for name, label in searches.items():
        best, time = read(name, "best.json"), read(name, "time.json")
        evaluation = evaluations[best["architecture"]]
        n = len(evaluation["top1"])
        tests = [
            f"{evaluation[f'{k}_mean']:.2%} ± {100 * evaluation[f'{k}_std']:.2f} (n = {n})" for k in ("top1", "top5")
        ]
        lines.append(
            f"| {label} | `{best['architecture']}` | {best['val_accuracy']:.2%} | {' | '.join(tests)} "
            f"| {best['parameters']:,} | {best['children']} |" + f" {duration(time['wall'])} |" * timed
        )
    return lines, [evaluations[read(name, "best.json")["architecture"]] for name in searches]


def results_block() -> str:
    """The table of results: searches, and the speed of training beside the original loop."""
    lines, found = search_table(SEARCHES, timed=True)
    n, config = len(found[0]["top1"]), read("mnist", "config.json")
    lead = found[0]["top1_mean"] - found[1]["top1_mean"]
    ending = f"the network of the {'policy gradient' if lead >= 0 else 'random search'} is ahead by {abs(lead):.2%}"
    if found[0] == found[1]:
        ending = "both chose the same network, which was evaluated once"
    machine, versions = config["machine"], config["versions"]
    lines += [
        "",
        f"**One search each** (seed {config['settings']['seed']}), so the two rows are no comparison (here {ending}; the next table is one); mean ± standard deviation over {n} trainings of the "
        f"network that the search chose. {machine['cores']} cores of an {machine['cpu']}, torch {versions['torch']}. For another task and budget: the "
        "paper reports 3.65 % test error on CIFAR-10 after 12,800 children on 800 GPUs.",
        "",
        "![Reward of each child, and the policy over time](results/mnist/search.png)",
        "",
    ]
    speed = read("child_speed.json")
    small, large = (speed["where_time_goes"][text]["convolution"] for text in (PANEL[0], PANEL[-1]))
    lines.append(
        f"A child takes {3600 * speed['cores'] / speed['children_per_hour']:.1f} core-seconds on average over 12 architectures: "
        f"{speed['children_per_hour']:,.0f} children an hour on {speed['cores']} cores, {speed['ratio']:.0f} times the original "
        f"training loop's {speed['original_children_per_hour']:.1f}, with {speed['test_accuracy']:.2%} mean test accuracy where the "
        f"original reaches {speed['original_test_accuracy']:.2%} ({len(speed['accuracy_architectures'])} architectures; "
        f"n = {speed['seeds']} and 1 each). That is {speed['share_of_peak']:.0%} of the cores' float32 matrix-product peak, weighted by time; "
        f"convolutions take {small:.0%} of the smallest network's time and {large:.0%} of the largest's, the rest is pooling, the linear "
        "layers, and the cost of calling operations on small maps (`results/child_speed.json`, `results/recipe.md`)."
    )
    return "\n".join(lines)


def with_interval(row: dict, key: str = "truth", sign: str = "") -> str:
    """A mean of accuracies in %, or of their differences, with its 95 % interval."""
    return f"{100 * row[key]:{sign}.3f} ± {100 * row[f'{key}_ci']:.3f}"


def comparison_block() -> str:
    """What each method hands over, on every table: the best observed, with finalists, and the controller's lead."""
    lines = []
    for name, label in TABLES.items():
        result = read(f"search_quality_{name}.json")
        methods, budgets = result["methods"], list(result["methods"]["controller"]["budgets"])
        shown = [(b, "found") for b in budgets] + [(b, "finals") for b in budgets[-2:]]
        titles = [b if kind == "found" else f"{b}, finalists among them" for b, kind in shown]
        tested = name == "mnist"
        lines += [f"| {label} | {' | '.join(titles)} |{' test, 100 with finalists |' * tested}"]
        lines += ["|---" * (1 + len(titles) + tested) + "|"]
        for method, values in methods.items():
            cells = [with_interval(values["budgets"][b][kind]) for b, kind in shown]
            cells += [with_interval(values["budgets"]["100"]["finals"], "test")] if tested else []
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines += ["", f"| the controller's lead over | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
        for method, values in methods.items():
            if method not in ("controller", "everything"):
                rows = [values["budgets"][b][kind] for b, kind in shown]
                p = ["< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}" for row in rows]
                leads = [with_interval(row, "controller_ahead", "+") for row in rows]
                cells = [f"{lead} (p {value})" for lead, value in zip(leads, p, strict=True)]
                lines.append(f"| {method} | {' | '.join(cells)} |")
        lines += ["", "| the policy after | " + " | ".join(budgets) + " |", "|---" * (1 + len(budgets)) + "|"]
        for method in ("controller", "controller without replay"):
            for kind, words in (("samples", "mean of its samples"), ("modes", "its most frequent sample")):
                rows = [methods[method]["budgets"][b][kind] for b in budgets]
                lines.append(f"| {method}: {words} | {' | '.join(map(with_interval, rows))} |")
        n = {method: values["budgets"][budgets[0]]["found"]["n"] for method, values in methods.items()}
        fewer = "".join(f", {n[method]} of the {method}" for method in n if n[method] < max(n.values()))
        best = 100 * result["truth"]["best"]
        lines += ["", f"Accuracies in %, n = {max(n.values())} searches{fewer}; the best network has {best:.2f}.", ""]
    return "\n".join(lines).rstrip()


def truth_block() -> str:
    """The found network's true place, whether live searches equal their replay, and what a reward is worth."""
    rows = list(csv.DictReader((RESULTS / "mnist_space.csv").open()))
    rows.sort(key=lambda row: -float(row["val_mean"]))
    found = read("mnist", "best.json")["architecture"]
    place = [row["architecture"] for row in rows].index(found)
    text = [
        f"`{found}`, which the default search found, is number {place + 1} of the 729: {float(rows[place]['val_mean']):.2%} where the best, "
        f"`{rows[0]['architecture']}`, has {float(rows[0]['val_mean']):.2%} (validation accuracy, mean of three trainings)."
    ]
    if (RESULTS / "live_check.json").exists():
        live = read("live_check.json")["searches"]
        same = [run["replay_is_the_same"] and run["replay_chooses"] == run["live_search_chose"] for run in live]
        seeds, tried = ", ".join(str(run["seed"]) for run in live), sum(run["trained_again"] for run in live)
        text.append(
            f"Real searches with seeds {seeds} were replayed from their ledgers in one process: {sum(same)} of {len(same)} walk the same way "
            f"and choose the same network. Of {tried} of their children that were trained again, {sum(run['equal'] for run in live)} have the same accuracy (`results/live_check.json`)."
        )
    f = read("reward_fidelity.json")
    ci, v, n = f["rank_correlation_of_one_reward_ci"], f["reward_all_729"], f["final_seeds"]
    text.append(
        f"What is a reward worth? Over the 729 networks {v['share_of_variance']:.0%} of its variance is the architecture (standard deviation "
        f"{100 * v['signal']:.2f} points) and the rest the noise of one training ({100 * v['noise']:.2f}). For {f['architectures']} networks spread over the "
        f"ranks, trained as `--mode evaluate` does (n = {n} each), its rank correlation with the final test accuracy is "
        f"{f['rank_correlation_of_one_reward'][0]:.2f} (95 % interval {ci[0]:.2f} to {ci[1]:.2f}), of the mean of three "
        f"{f['rank_correlation_of_the_mean_of_three']:.2f}, among the better half {f['rank_correlation_in_the_better_half']:.2f}."
    )
    text.append("![Final test accuracy against reward](results/reward_fidelity.png)")
    return "\n\n".join(text)


def cost_block() -> str:
    """What the paper's search would cost."""
    cost = read("paper_cost.json")
    first, last = cost["depths"][0], cost["depths"][-1]
    return (
        f"It would cost {cost['flops']:.1e} floating-point operations: {cost['core_years']:,.0f} years on one core of this machine, or "
        f"{cost['flops'] / 1e14 / 86400:,.0f} days on a GPU that keeps up 100 TFLOP/s. A random network takes {first['forward_flops'] / 1e9:.1f} GFLOP an image at "
        f"{first['layers']} layers and {last['forward_flops'] / 1e9:.1f} at {last['layers']}; each child trains on 45,000 images for 50 epochs "
        "(`python -m benchmarks.paper_cost`). **It has not been run here.**"
    )


def fashion_block() -> str:
    """The searches on Fashion-MNIST."""
    lines, found = search_table(FASHION, timed=False)
    config = read("fashionmnist-paper", "config.json")["flags"]
    lines += [
        "",
        f"Children trained for {config['child_epochs']:g} epoch on {config['train_images']:,} images; test accuracies are means ± standard deviations over "
        f"{len(found[0]['top1'])} trainings of `--mode evaluate` on all 60,000 images for {found[0]['recipe']['epochs']:g} epochs. Mean ± standard deviation over n = {len(SEEDS)} searches in the paper's space:",
        "",
        "| | validation accuracy of the best | its test top-1 | mean reward of the last 20 children |",
        "|---|---|---|---|",
    ]
    for method, name in PAPER_SPACE.items():
        columns = [[], [], []]
        for suffix in SEEDS.values():
            rows = map(json.loads, (RESULTS / f"{name}{suffix}" / "children.jsonl").read_text().splitlines())
            rewards = [row["reward"] for row in sorted(rows, key=lambda row: row["child"])]
            best = read(f"{name}{suffix}", "best.json")["val_accuracy"]
            values = best, read(f"{name}{suffix}", "evaluation.json")["top1_mean"], statistics.fmean(rewards[-20:])
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        cells = [f"{statistics.fmean(column):.2%} ± {100 * statistics.stdev(column):.2f}" for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            "![The best network of the paper's space, seed 0](results/fashionmnist-paper/best.png)",
            "",
            "![Reward of each child, and the policy over time](results/fashionmnist-paper/search.png)",
        ]
    )


def scaling_block() -> str:
    """What a simulation says about many workers, what real runs say about it, and what staleness costs."""
    result = read("scaling.json")
    recommended, lag0 = (next(row for row in rows if row["workers"] == 800) for rows in result["simulated"].values())
    rates, seconds = result["children_per_second"], result["mean_seconds"]
    limits = ", ".join(
        f"with {k} sample{'s' if k != '1' else ''} {v:.0%}"
        for k, v in list(result["samples_under_way_for_each_of_800_workers"].items())[:-1]
    )
    checks = ", ".join(f"{c['difference']:+.1%} with {c['workers']}" for c in result["checks"])
    lines = [
        f"Simulated with the durations of the default search's children, 800 workers train {recommended['used_without_drain']:.1%} of their time with a lag of "
        f"{recommended['update_lag']} ({recommended['used']:.1%} with the drain at the end of {result['children_per_worker']} children a worker), {lag0['used_without_drain']:.1%} with lag 0. "
        f"What limits it is the number of *new* children under way for each worker, as the slowest child, {result['slowest_child']:.1f} times the mean, holds up the next update: {limits} of the time is used. The simulated time of real "
        f"searches of {result['checks'][0]['children']} children differs from the measured one by {checks} workers. The process of the controller hands out and takes back {rates['local']:.0f} children a "
        f"second, {rates['ray']:.0f} through Ray (children of zero length, 6 layers of the paper's space, `--replay 100`): with {seconds:.1f} s a child that feeds {rates['local'] * seconds:,.0f} and {rates['ray'] * seconds:,.0f} workers.",
        "",
        "![Worker time used](results/scaling.png)",
        "",
    ]
    tables = [read(f"search_quality_nasbench_macro_{name}.json")["methods"] for name in ("workers", "800")]
    columns = [(table, budget) for table in tables for budget in table["random search"]["budgets"]]
    n = tables[0]["random search"]["budgets"][columns[0][1]]["found"]["n"]
    lines += [
        f"What staleness costs on NAS-Bench-Macro: true accuracy of the best observed with its 95 % interval, and mean of the children in the second half of the budget, %, n = {n} searches each.",
        "",
        "| for workers | samples under way | " + " | ".join(f"{budget} children" for _, budget in columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for method in tables[0]:
        words = method.split()
        under_way = f"{CHILDREN_PER_UPDATE * (1 + recommended_lag(int(words[0]))):,}" if "workers" in method else ""
        cells = []
        for table, budget in columns:
            found = table[method]["budgets"][budget]["found"] if method in table else None
            late = table[method]["late"].get(budget) if method in table else None
            cell = f"{100 * found['truth']:.2f} ± {100 * found['truth_ci']:.2f}" if found else ""
            cells.append(cell + (f", {100 * late['truth']:.2f}" if late else ""))
        lines.append(f"| {method.replace(' workers', '')} | {under_way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report_block() -> str:
    """What the two commands print at their end."""
    return "```\n" + (RESULTS / "mnist" / "report.txt").read_text().rstrip() + "\n```"


def render(text: str) -> str:
    """README's text with its blocks filled."""
    blocks = {
        "results": results_block(),
        "comparison": comparison_block(),
        "truth": truth_block(),
        "fashion": fashion_block(),
        "cost": cost_block(),
        "scaling": scaling_block(),
        "report": report_block(),
    }
    for name, content in blocks.items():
        block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        text, count = re.subn(
            rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL
        )
        assert count == 1, f"README has no block {name}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="copy the searches in runs/ to results/ first")
    if parser.parse_args().collect:
        collect()
    figures.main()
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
