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
from benchmarks.search_quality import CHANGES
from utils import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SEARCHES = {"policy gradient": "mnist", "random search": "mnist-random"}
FASHION = {"paper's space, policy gradient": "fashionmnist-paper", "paper's space, random search":
           "fashionmnist-paper-random", "small space, policy gradient": "fashionmnist-small"}  # fmt: skip
SHORT = "controller", "random search", "regularised evolution, 10 under way", "TPE, 10 under way", "paper's controller"


def read(*parts: str) -> dict:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def methods_of(name: str) -> dict:
    return read(f"search_quality_{name}.json")["methods"]


def table(header: list, rows: list[list]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, ["---"] * len(header), *rows))


def interval(row: dict, key: str = "truth", digits: int = 3) -> str:
    """A mean of accuracies in %, and half of its 95 % interval."""
    return f"{100 * row[key]:.{digits}f} ± {100 * row[f'{key}_ci']:.{digits}f}"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of fractions, in %."""
    return f"{100 * statistics.fmean(values):.2f}" + (f" ± {100 * statistics.stdev(values):.2f}" if values[1:] else "")


def searches(kinds: dict[str, str]) -> str:
    """Searches, a row for each kind; ± over searches, or of one search over the trainings of its network."""
    rows = []
    for label, name in kinds.items():
        names = [name + seed for seed in ("", "-seed1", "-seed2") if (RESULTS / (name + seed)).exists()]
        picks, tests = ([read(name, file) for name in names] for file in ("best.json", "evaluation.json"))
        tested = [test["top1_mean"] for test in tests] if len(names) > 1 else tests[0]["top1"]
        rows.append([label, len(names), spread([pick["val_accuracy"] for pick in picks]), spread(tested)])
    return table(["", "searches", "validation accuracy of the pick", "its test accuracy"], rows)


def references() -> str:
    """Networks that nobody searched for beside the found one."""
    rows: dict[str, list] = {}
    for name in ("mnist", "fashionmnist-small"):
        found = read(name, "evaluation.json")
        for row in ({"name": "found by the search"} | found, *found["references"]):
            cells = rows.setdefault(row["name"], [f"{row['name']} (n = {len(row['top1'])})"])
            cells += [spread(row["top1"]), f"{row['parameters']:,.0f}"]
    return table(["", "MNIST, test", "parameters", "Fashion-MNIST, test", "parameters"], list(rows.values()))


def answer() -> str:
    """The short comparison on the first page."""
    columns = [(methods_of(n), key) for n, key in (("nasbench_macro", "truth"), ("mnist", "truth"), ("mnist", "test"))]
    rows = [[m, *(interval(methods[m]["budgets"]["100"]["finals"], key) for methods, key in columns)] for m in SHORT]
    return table(["", "NAS-Bench-Macro, test", "MNIST, validation", "MNIST, test"], rows)


def comparison(name: str, lead: bool = False) -> str:
    """What each method hands over on a table, or the controller's lead over it."""
    methods = {method: m["budgets"] for method, m in methods_of(name).items() if method != "everything"}
    budgets, tests = list(methods["controller"]), ["found", "finals"] if name == "mnist" and not lead else []
    kinds = [(b, "found") for b in budgets] + [(b, "finals") for b in budgets[-2:]]
    rows = [[method, *(row[b][kind] for b, kind in kinds)] for method, row in methods.items()]
    if lead:
        cell = "{:+.3f} (p {:.3f})"
        rows = [[row[0], *(cell.format(100 * c["controller_ahead"], c["p"]) for c in row[1:])] for row in rows[1:]]
    else:
        rows = [[row[0], *map(interval, row[1:])] for row in rows]
        for row in rows:
            row += [interval(methods[row[0]]["100"][kind], "test") for kind in tests]
    header = ["lead over" if lead else "trainings", *budgets, *(f"{b}, with finalists" for b in budgets[-2:])]
    return table([*header, *(f"test, 100{end}" for end in ("", ", with finalists")[: len(tests)])], rows)


def policy() -> str:
    """What the controller's policy has learned."""
    rows = []
    for name, label in (("mnist", "MNIST"), ("nasbench_macro", "NAS-Bench-Macro")):
        budgets = methods_of(name)["controller"]["budgets"]
        for kind, words in (("samples", "mean of the samples"), ("modes", "most frequent sample")):
            rows.append([f"{label}, {words}", *(interval(row[kind]) for row in budgets.values())])
    return table(["trainings", *budgets], rows)


def changes(kind: str) -> str:
    """True accuracy of the pick, or of the policy's samples, with each change to the paper's settings, and without it."""
    both = [methods_of(name) | methods_of(f"{name}_changes") for name in ("mnist", "nasbench_macro")]
    rows = [(name, f"{name} alone", f"without {name}") for name in CHANGES]
    rows = [("paper's settings; defaults", "paper's controller", "controller"), *rows]
    rows = [[row[0], *(interval(m[x]["budgets"]["100"][kind]) for x in row[1:] for m in both)] for row in rows]
    return table(["change", "alone: MNIST", "NAS-Bench-Macro", "missing: MNIST", "NAS-Bench-Macro"], rows)


def recipes() -> str:
    """What one reward says of the final accuracy, by recipe, and what it costs."""
    header = ["recipe", "core-seconds", "all 50", "best tenth", "all 50, test", "best tenth, test"]
    rows = []
    for name, row in read("reward_fidelity.json")["recipes"].items():
        cells = ((row[key], *row[f"{key}_ci"]) for key in ("all_val", "best_tenth_val", "all_test", "best_tenth_test"))
        rows.append([name, f"{row['seconds']:.1f}", *("{:.2f} ({:.2f} to {:.2f})".format(*cell) for cell in cells)])
    return table(header, rows)


def staleness(kind: str) -> str:
    """What lags cost: the best network `found`, or the children of the second half of the budget, `late`."""
    rows = []
    for method, m in methods_of("nasbench_macro_workers").items():
        cells = m["late"] if kind == "late" else {b: row["found"] for b, row in m["budgets"].items()}
        rows.append([method.replace("1 workers", "1 worker"), *(interval(cell, digits=2) for cell in cells.values())])
    return table(["lag for", *(f"{budget} children" for budget in m["budgets"])], rows)


TABLES = {f.__name__: f for f in (references, answer, policy, recipes)}
TABLES |= {"searches": partial(searches, SEARCHES), "fashion": partial(searches, FASHION)}
TABLES |= {name: partial(changes, name.split("_")[1]) for name in ("changes_found", "changes_samples")}
TABLES |= {kind: partial(staleness, kind) for kind in ("found", "late")}
TABLES |= {name: partial(comparison, name) for name in ("mnist", "nasbench_macro")}
TABLES |= {f"{name}_lead": partial(comparison, name, lead=True) for name in ("mnist", "nasbench_macro")}


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
