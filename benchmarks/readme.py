"""Fill README's marked blocks from the files in results/.

python -m benchmarks.readme              from results/
python -m benchmarks.readme --collect    first copy the searches in runs/mnist and runs/mnist-random to results/
"""

import argparse
import json
import re
import shutil

from benchmarks.common import PANEL, RESULTS
from train import duration
from utils import ROOT

SEARCHES = {"mnist": "policy gradient (`generate`)", "mnist-random": "random search (`generate --strategy random`)"}
FILES = ("best.json", "best_child.pt", "children.jsonl", "config.json", "evaluation.json", "search.png", "time.json")


def collect() -> None:
    """Copy what the searches in runs/ left, without event files; the random search's ledger and numbers only."""
    for name in SEARCHES:
        (RESULTS / name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if (ROOT / "runs" / name / file).exists() and (name == "mnist" or not file.endswith((".pt", ".png"))):
                shutil.copy(ROOT / "runs" / name / file, RESULTS / name / file)


def read(*parts: str) -> dict:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def results_block() -> str:
    """The table of results: searches, and the speed of training beside the original loop."""
    lines = [
        "| search | best architecture | validation accuracy, one training | test top-1 | test top-5 | parameters "
        "| children trained | search time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    evaluations = [json.loads(file.read_text()) for file in RESULTS.glob("mnist*/evaluation.json")]
    evaluations = {evaluation["architecture"]: evaluation for evaluation in evaluations}
    for name, label in SEARCHES.items():
        best, time, config = (read(name, f"{f}.json") for f in ("best", "time", "config"))
        evaluation = evaluations[best["architecture"]]
        n = len(evaluation["top1"])
        tests = [
            f"{evaluation[f'{k}_mean']:.2%} ± {100 * evaluation[f'{k}_std']:.2f} (n = {n})" for k in ("top1", "top5")
        ]
        lines.append(
            f"| {label} | `{best['architecture']}` | {best['val_accuracy']:.2%} | {' | '.join(tests)} "
            f"| {best['parameters']:,} | {best['children']} | {duration(time['wall'])} |"
        )
    found = {read(name, "best.json")["architecture"] for name in SEARCHES}
    once = " Both searches chose the same network, which was evaluated once." if len(found) == 1 else ""
    machine, versions = config["machine"], config["versions"]
    lines += [
        "",
        f"**One search each** (seed {config['settings']['seed']}), so the two rows are no comparison; mean ± standard deviation over {n} trainings of the network that the search "
        f"chose.{once} {machine['cores']} cores of an {machine['cpu']}, torch {versions['torch']}. For another task and budget: the "
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


def report_block() -> str:
    """What the two commands print at their end."""
    return "```\n" + (RESULTS / "mnist" / "report.txt").read_text().rstrip() + "\n```"


def render(text: str) -> str:
    """README's text with its blocks filled."""
    for name, content in (("results", results_block()), ("report", report_block())):
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
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
