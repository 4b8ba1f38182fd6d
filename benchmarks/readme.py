"""Draw the figures of README and docs/, and fill their tables, from the files in results/.

python -m benchmarks.readme              from results/
python -m benchmarks.readme --collect    first take from runs/ what results/ has of the same name
"""

import argparse
import json
import re
import shutil
import statistics
from functools import partial

from benchmarks import figures
from benchmarks.common import RESULTS
from benchmarks.final_training import DATASETS
from benchmarks.search_quality import CHANGES
from benchmarks.summary import EVERYTHING, SAME_TIME
from utils import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SEARCHES = {"policy gradient": "mnist", "random search": "mnist-random"}
FASHION = {
    "3 layers, random search": "fashionmnist-paper-random",
    "3 layers, policy gradient": "fashionmnist-paper",
    "the same, half the entropy bonus": "fashionmnist-paper-half",
    "the same, twice the entropy bonus": "fashionmnist-paper-twice",
    "8 layers, random search": "fashionmnist-paper8-random",
    "8 layers, policy gradient": "fashionmnist-paper8",
    "small space, policy gradient": "fashionmnist-paper-small",
}
OURS = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST"}  # with fresh trainings
TABLED = OURS | {"nasbench_macro": "NAS-Bench-Macro", "nasbench201": "NAS-Bench-201"}
UNDER_WAY = ("regularised evolution, 10 under way", "local search, 10 under way", "TPE, 10 under way")
SHORT = ("controller", "random search", UNDER_WAY[0], UNDER_WAY[2], "paper's controller")


def read(*parts: str) -> dict:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def methods_of(name: str) -> dict:
    return read(f"search_quality_{name}.json")["methods"]


def table(header: list, rows: list[list]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, ["---"] * len(header), *rows))


def shown(method: str) -> str:
    """A method's name on a page; the files' names hold the words of an earlier version."""
    return method.replace("under way", "pending")


def interval(row: dict, key: str = "truth", digits: int = 3) -> str:
    """A mean of accuracies in %, and half of its 95 % interval."""
    return f"{100 * row[key]:.{digits}f} ± {100 * row[f'{key}_ci']:.{digits}f}"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of fractions, in %."""
    return f"{100 * statistics.fmean(values):.2f}" + (f" ± {100 * statistics.stdev(values):.2f}" if values[1:] else "")


def final() -> str:
    """How a network is best trained in the end: accuracies on validation and test images, by what is changed."""
    summary = read("final_training.json")
    rows = []
    for change in summary["FashionMNIST"]:
        of = [summary[dataset].get(change) for dataset in DATASETS]
        cells = [f"{100 * row[f'{part}_accuracy']:.2f}" if row else "" for row in of for part in ("val", "test")]
        rows.append([change, *cells, f"{of[0]['seconds'] / 60:.1f}"])
    header = [f"{name}, {part}" for name in ("Fashion-MNIST", "MNIST") for part in ("validation", "test")]
    return table(["", *header, "core-minutes, Fashion-MNIST"], rows)


def epochs() -> str:
    """What --eval_epochs brings: minutes of four trainings on two cores, and test accuracies."""
    summary, rows = read("final_training.json"), []
    fashion, mnist = summary["FashionMNIST"], summary["MNIST"]
    for change in (change for change in fashion if re.fullmatch(r"\d+ epochs?", change)):
        cells = (f"{100 * of[change]['test_accuracy']:.2f}" if change in of else "" for of in (fashion, mnist))
        minutes = 4 / 2 * fashion[change]["seconds"] / 60
        rows.append([change.split()[0], f"{minutes:.1f}", *cells])
    return table(["`--eval_epochs`", "minutes", "Fashion-MNIST, test", "MNIST, test"], rows)


def depths() -> str:
    """Searches of two, three and four layers, whose picks are trained in the same time; ± over searches."""
    rows = []
    for layers, of in read("depths.json").items():
        if layers.isdigit():
            accuracies = (
                f"{100 * of[part]:.2f} ± {100 * of[f'{part}_std']:.2f}" for part in ("val_accuracy", "test_accuracy")
            )
            sizes = f"{of['search_seconds'] / 60:.1f}", f"{of['parameters']:,.0f}", f"{of['epochs']:.1f}"
            rows.append([layers, of["n"], *sizes, *accuracies])
    header = ["layers", "searches", "core-minutes of a search", "parameters", "epochs", "validation", "test"]
    return table(header, rows)


def searches() -> str:
    """The two live searches on MNIST; ± over the trainings of what was found."""
    rows = []
    for label, name in SEARCHES.items():
        tested = read(name, "evaluation.json")["top1"]
        rows.append([label, spread([read(name, "best.json")["val_accuracy"]]), spread(tested)])
    return table(["", "validation accuracy of the pick", "its test accuracy"], rows)


def fashion() -> str:
    """Searches of the paper's space, a row for each kind; ± over searches."""
    rows = []
    for label, kind in FASHION.items():
        names = [kind + seed for seed in ("", "-seed1", "-seed2") if has(kind + seed)]
        runs = [children_of(name) for name in names]
        ends = [spread([statistics.fmean(run[part]) for run in runs]) for part in (slice(20), slice(-20, None))]
        picks = [read(name, "best.json")["val_accuracy"] for name in names]
        tested = [read(name, "evaluation.json")["top1_mean"] for name in names if has(name, "evaluation.json")]
        rows.append([label, len(names), *ends, spread(picks), spread(tested) if tested else ""])
    return table(["", "searches", "first 20 children", "last 20 children", "the pick", "its test accuracy"], rows)


def has(*parts: str) -> bool:
    return RESULTS.joinpath(*parts).exists()


def children_of(name: str) -> list[float]:
    """Validation accuracies of a search's children, 0 to 1, in their order."""
    rows = map(json.loads, (RESULTS / name / "children.jsonl").read_text().splitlines())
    return [row["val_accuracy"] for row in sorted(rows, key=lambda row: row["child"])]


def references() -> str:
    """Networks that nobody searched for beside the found one."""
    rows: dict[str, list] = {}
    for i, name in enumerate(("mnist", "fashionmnist-two-layers")):
        found = read(name, "evaluation.json")
        for row in ({"name": "found by the search"} | found, *found["references"]):
            cells = rows.setdefault(row["name"], [f"{row['name']} (n = {len(row['top1'])})", *[""] * 4])
            cells[1 + 2 * i : 3 + 2 * i] = spread(row["top1"]), f"{row['parameters']:,.0f}"
    return table(["", "MNIST, test", "parameters", "Fashion-MNIST, test", "parameters"], list(rows.values()))


def gpu_children() -> str:
    """Children of the default search an hour, on a GPU and on the processor beside it."""
    rows = sorted(read("gpu.json")["throughput"]["rows"], key=lambda row: row["device"])
    two = next(row["children_per_hour"] for row in rows if row["device"] == "cpu" and row["workers"] == 2)
    cells = []
    for row in rows:
        where = {"gpu": "GPU", "gpu, mps": "GPU, with MPS", "cpu": "CPU"}[row["device"]]
        rate = row["children_per_hour"]
        cells.append([where, row["workers"], f"{rate:,.0f}", f"{rate / two:.1f}"])
    return table(["", "workers", "children an hour", "times two cores"], cells)


def gpu_steps() -> str:
    """What a training's step takes on a GPU, as one graph and kernel by kernel."""
    rows = read("gpu.json")["step"]["rows"]
    names = ("the default search's `k5f16p0-k5f32p1`", "15 layers of the paper's space")
    cells = []
    for name, graph, each in zip(names, rows[::2], rows[1::2], strict=True):
        as_graph, one_by_one = (f"{row['wall'] / 1000:.2f} ms" for row in (graph, each))
        busy = f"{each['busy']:.0%}", f"{graph['busy']:.0%}"
        cells.append([name, graph["batch_size"], f"{each['launches']:.0f}", one_by_one, as_graph, *busy])
    ways = ["kernel by kernel", "as a graph"]
    return table(["a step of", "images", "kernels", *ways, *(f"GPU busy, {way}" for way in ways)], cells)


def answer() -> str:
    """The short comparison on the first page."""
    columns = [methods_of(name) for name in TABLED]
    some = {m: [methods[m]["budgets"]["100"]["finals"] for methods in columns] for m in SHORT}
    rows = [[shown(m), *(interval(row, digits=2) for row in of)] for m, of in some.items()]
    return table(["", *TABLED.values()], rows)


def with_rank(row: dict, digits: int = 3) -> str:
    """A mean and its interval; in brackets the mean of all trainings, where some were seen by the search, and the rank."""
    more = [f"{100 * row['truth_all']:.{digits}f}"] if "truth_all" in row else []
    more += [f"{row['rank']:.0f}"] if "rank" in row else []
    return interval(row, digits=digits) + (f" ({', '.join(more)})" if more else "")


def cells(name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Headings and places of what is handed over: at all budgets, and with finalists at the last two."""
    budgets = list(methods_of(name)["controller"]["budgets"])
    finals = budgets[-2:]
    return [*budgets, *(f"{b}, with finalists" for b in finals)], [
        *((b, "found") for b in budgets),
        *((b, "finals") for b in finals),
    ]


def comparison(name: str) -> str:
    """What each method hands over on a table, and in brackets its rank."""
    methods, (header, places) = methods_of(name), cells(name)
    rows = [[m, *(with_rank(of["budgets"][b][kind]) for b, kind in places)] for m, of in methods.items()]
    return table(["trainings", *header], [row for row in rows if row[0] != EVERYTHING])


def lead(name: str) -> str:
    """The controller's lead over each method."""
    header, places = cells(name)
    rows = []
    for method, of in methods_of(name).items():
        if method not in ("controller", EVERYTHING):
            some = [of["budgets"][b][kind] for b, kind in places]
            rows.append([method, *(f"{100 * row['controller_ahead']:+.3f} (p {row['p']:.3f})" for row in some)])
    return table(["lead over", *header], rows)


def by_rule(name: str) -> str:
    """What is handed over with the rule of the rivals, the reward alone, and with the controller's."""
    rows, places = [], [(b, kind) for kind in ("found", "finals") for b in ("100", "200")]
    for method, of in methods_of(name).items():
        ends = ("_reward", "") if "found_reward" in of["budgets"]["100"] else ("", "_smoothed")
        if f"found{ends[1]}" in of["budgets"]["100"] and method not in (SAME_TIME, EVERYTHING):
            rows.append([method, *(with_rank(of["budgets"][b][kind + end]) for b, kind in places for end in ends)])
    words = [f"{b}{', with finalists' if kind == 'finals' else ''}" for b, kind in places]
    return table(["", *(f"{word}: by {rule}" for word in words for rule in ("reward", "both"))], rows)


def tests() -> str:
    """Test accuracy, which no method sees, of what is handed over with finalists."""
    labels = {name: label for name, label in TABLED.items() if name != "nasbench_macro"}  # which has no other accuracy
    places = [(methods_of(name), b) for name in labels for b in ("100", "200")]
    rows = [
        [m, *(interval(of[m]["budgets"][b]["finals"], "test") if m in of else "" for of, b in places)]
        for m in places[0][0]
    ]
    header = [f"{label}, {b}" for label in labels.values() for b in ("100", "200")]
    return table(["test accuracy", *header], rows)


def policy() -> str:
    """How far the controller's samples are on the way from the mean of a space to its best 20."""
    rows = []
    for name, label in TABLED.items():
        budgets = methods_of(name)["controller"]["budgets"]
        rows.append([label, *(f"{row['samples']['share']:.2f}" for row in budgets.values())])
    return table(["trainings", *budgets], rows)


def windows() -> str:
    """The same of the children, twenty at a time."""
    rows = []
    for name, label in TABLED.items():
        shares = methods_of(name)["controller"]["share_in_steps_of_20"]
        rows.append([label, *(f"{share:.2f}" for share in shares)])
    return table(["children", *(f"{20 * k + 1} to {20 * k + 20}" for k in range(len(shares)))], rows)


def large(name: str) -> str:
    """A generated space: what is handed over, and the last children, in standard deviations of the space."""
    methods, rows = methods_of(name), []
    for method, of in methods.items():
        some = [(row["found"], "truth") for row in of["budgets"].values()] + [(of["last_40"], "truth")]
        rows.append([method, *(f"{row[key]:.2f} ± {row[f'{key}_ci']:.2f}" for row, key in some)])
    return table(["trainings", *methods["controller"]["budgets"], "last 40 children"], rows)


def changes(kind: str) -> str:
    """True accuracy of the pick, or of the policy's samples, with each change to the paper's settings, and without it."""
    both = [methods_of(name) | methods_of(f"{name}_changes") for name in ("mnist", "nasbench_macro")]
    rows = [(name, f"{name} alone", f"without {name}") for name in CHANGES]
    rows = [("none", "paper's controller", "controller"), *rows]  # the paper's settings, the defaults
    rows = [
        [row[0], *(interval(m[x]["budgets"]["100"][kind], digits=2) for x in row[1:] for m in both)] for row in rows
    ]
    return table(
        ["change", *(f"{how}, {label}" for how in ("alone", "missing") for label in ("MNIST", "NAS-Bench-Macro"))], rows
    )


def recipes() -> str:
    """What one reward says of the final accuracy, by recipe, and what it costs."""
    header = ["recipe", "core-seconds", "all 50", "best tenth", "all 50, same images", "best tenth, same images"]
    rows = []
    for name, row in read("reward_fidelity.json")["recipes"].items():
        cells = (
            (row[key], *row[f"{key}_ci"]) for key in ("all_other", "best_tenth_other", "all_val", "best_tenth_val")
        )
        rows.append([name, f"{row['seconds']:.1f}", *("{:.2f} ({:.2f} to {:.2f})".format(*cell) for cell in cells)])
    return table(header, rows)


def staleness(kind: str) -> str:
    """What lags cost: the best network `found`, or the children of the second half of the budget, `late`."""
    rows = []
    for method, m in methods_of("nasbench_macro_workers").items():
        cells = m["late"] if kind == "late" else {b: row["found"] for b, row in m["budgets"].items()}
        rows.append([method.replace("1 workers", "1 worker"), *(interval(cell, digits=2) for cell in cells.values())])
    return table(["lag for", *(f"{budget} children" for budget in m["budgets"])], rows)


def lags() -> str:
    """What the controller hands over by its update lag, two children an update."""
    methods = methods_of("nasbench_macro_lags")
    budgets = list(methods["lag 0"]["budgets"])
    rows = [[m, *(interval(of["budgets"][b]["found"], digits=2) for b in budgets)] for m, of in methods.items()]
    return table(["", *(f"{budget} children" for budget in budgets)], rows)


TABLES = {
    f.__name__: f for f in (searches, fashion, final, epochs, references, answer, tests, policy, windows, recipes, lags)
}
TABLES |= {f.__name__: f for f in (depths, gpu_children, gpu_steps)}
TABLES |= {name: partial(changes, name.split("_")[1]) for name in ("changes_found", "changes_samples")}
TABLES |= {kind: partial(staleness, kind) for kind in ("found", "late")}
TABLES |= {name: partial(comparison, name) for name in TABLED}
TABLES |= {f"{name}_lead": partial(lead, name) for name in TABLED}
TABLES |= {f"{name}_rule": partial(by_rule, name) for name in TABLED}
TABLES |= {kind: partial(large, kind) for kind in ("pairs", "singles")}


def render(text: str) -> str:
    """A page's text with its tables filled."""
    block = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return block.sub(lambda m: f"<!-- table: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="take files of the searches in runs/ first")
    if parser.parse_args().collect:
        for file in RESULTS.glob("*/*"):
            if (newer := ROOT / "runs" / file.relative_to(RESULTS)).exists():
                shutil.copy(newer, file)
    figures.main()
    for page in PAGES:
        page.write_text(render(page.read_text()))
