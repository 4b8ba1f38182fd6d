"""The tables of pages that compare methods of searching, from results/search_quality_<name>.json."""

import csv
import io
import statistics
from collections.abc import Sequence
from functools import partial

from benchmarks.common import RESULTS, interval, read, shown, table
from benchmarks.search_quality import CHANGES
from benchmarks.summary import KINDS

OURS = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST"}  # with fresh trainings
TABLED = OURS | {"nasbench_macro": "NAS-Bench-Macro", "nasbench201": "NAS-Bench-201"}
# Methods are called here as in the files in results/.
TEN_PENDING = ("regularised evolution, 10 under way", "local search, 10 under way", "TPE, 10 under way")
SHORT = ("controller", "random search", TEN_PENDING[0], TEN_PENDING[2], "paper's controller")
COLUMNS = {  # of the comparisons on a page: trainings, and which pick
    "50": ("50", "found"),
    "100": ("100", "found"),
    "200": ("200", "found"),
    "100, with finalists": ("100", "finals"),
}
NUMBERS = {  # keys of the JSON files, and columns of the CSV files with all numbers
    "n": "searches",
    "truth": "true_accuracy",
    "truth_ci": "true_accuracy_interval",
    "truth_all": "mean_of_all_trainings",
    "rank": "rank",
    "test": "test_accuracy",
    "test_ci": "test_accuracy_interval",
    "share": "share_of_the_possible_gain",
    "controller_ahead": "lead_of_the_controller",
    "controller_ahead_ci": "lead_interval",
    "p": "p",
}


def methods_of(name: str) -> dict:
    return read(f"search_quality_{name}.json")["methods"]


def answer() -> str:
    """The short comparison on the first page."""
    columns = [methods_of(name) for name in TABLED]
    some = {m: [methods[m]["budgets"]["100"]["finals"] for methods in columns] for m in SHORT}
    rows = [[shown(m), *(interval(row, digits=2) for row in of)] for m, of in some.items()]
    return table(["", *TABLED.values()], rows)


def comparison(name: str) -> str:
    """True accuracy of each method's pick on a table; on our own also the mean of the networks that a rule of thumb names."""
    methods = methods_of(name)
    rows = []
    for method in SHORT:
        budgets = methods[method]["budgets"]
        rows.append([shown(method), *(interval(budgets[b][kind], digits=2) for b, kind in COLUMNS.values())])
    if name in OURS:
        rows.append(["no search: 32 filters in both layers", *[f"{100 * rule_of_thumb(name):.2f}"] * len(COLUMNS)])
    return table(["trainings", *COLUMNS], rows)


def rule_of_thumb(name: str) -> float:
    """Mean true accuracy of the 81 networks of our space with the most filters in both layers."""
    with (RESULTS / f"{name}_space.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["filters_1"] == row["filters_2"] == "32"]
    accuracies = []
    for row in rows:
        fresh = [float(value) for key, value in row.items() if key.startswith("fresh_") and value]
        accuracies.append(statistics.fmean(fresh) if fresh else float(row["val_1"]))  # as picks are judged
    return statistics.fmean(accuracies)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979) for the number of tests."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def lead(name: str) -> str:
    """The controller's lead over the other methods of the table above, with p-values; a star where Holm's is below 0.05."""
    methods = methods_of(name)
    some = {m: [methods[m]["budgets"][b][kind] for b, kind in COLUMNS.values()] for m in SHORT[1:]}
    corrected = iter(holm([row["p"] for of in some.values() for row in of]))
    rows = []
    for method, of in some.items():
        stars = ["*" if next(corrected) < 0.05 else "" for _ in of]
        leads = (
            f"{100 * row['controller_ahead']:+.2f}{star} ({p_value(row)})" for row, star in zip(of, stars, strict=True)
        )
        rows.append([shown(method), *leads])
    return table(["lead over", *COLUMNS], rows)


def p_value(row: dict) -> str:
    """A p-value, which the number of resamplings keeps from being smaller than 0.001."""
    return "p ≤ 0.001" if row["p"] <= 0.001 else f"p = {row['p']:.3f}"


def rules() -> str:
    """Picks after 100 trainings by the reward alone, the rule of the baseline methods, and by reward and policy, our rule."""
    names = ("mnist", "fashionmnist", "nasbench201")
    rows = []
    for method in SHORT[:4]:
        ends = ("_reward", "") if method == "controller" else ("", "_smoothed")
        budgets = [methods_of(name)[method]["budgets"]["100"] for name in names]
        rows.append([shown(method), *(interval(row[f"found{end}"], digits=2) for row in budgets for end in ends)])
    words = ("by reward", "by reward and policy")
    return table(["", *(f"{TABLED[name]}: {word}" for name in names for word in words)], rows)


def tests() -> str:
    """Test accuracy, which no method sees, of the picks after 100 trainings, with finalists."""
    labels = {name: label for name, label in TABLED.items() if name != "nasbench_macro"}  # which has no other accuracy
    rows = []
    for method in SHORT:
        picks = [methods_of(name)[method]["budgets"]["100"]["finals"] for name in labels]
        rows.append([shown(method), *(interval(row, "test", digits=2) for row in picks)])
    return table(["test accuracy", *labels.values()], rows)


def all_numbers(name: str) -> str:
    """Every method, budget and kind of pick of a comparison, as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "trainings", "pick", *NUMBERS.values()])
    for method, of in methods_of(name).items():
        for budget, kinds in of["budgets"].items():
            for kind in (kind for kind in KINDS if kind in kinds):
                values = (kinds[kind].get(key, "") for key in NUMBERS)
                writer.writerow([shown(method), budget, KINDS[kind].replace("both", "reward and policy"), *values])
    return text.getvalue()


def write_all_numbers() -> None:
    """A CSV file beside the JSON file of each comparison on the pages."""
    for name in (*TABLED, "singles", "pairs"):
        (RESULTS / f"search_quality_{name}.csv").write_text(all_numbers(name))


def policy() -> str:
    """The share of the possible gain that the controller's samples have: 0 the mean of a space, 1 that of its best 20."""
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


SEQUENTIAL = {  # methods with one evaluation pending, and what a page calls them
    "sequential controller": "controller, sequential",
    "regularised evolution, 10 and 5": "regularised evolution, sequential",
    "TPE": "TPE, sequential",
}


def large(name: str) -> str:
    """A generated space: each method's pick, and its last children, in standard deviations of the space."""
    methods, rows = methods_of(name), []
    for method in (*SHORT[:4], *SEQUENTIAL, SHORT[4]):
        picks = [row["found"] for row in methods[method]["budgets"].values()]
        cells = [f"{row['truth']:.2f} ± {row['truth_ci']:.2f}" for row in (*picks, methods[method]["last_40"])]
        searches = picks[0]["n"]
        label = SEQUENTIAL.get(method, shown(method)) + (f" ({searches} searches)" if searches != 100 else "")
        rows.append([label, *cells])
    return table(["evaluations", *methods["controller"]["budgets"], "last 40 evaluations"], rows)


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


def staleness(kind: str) -> str:
    """What lags cost: the best network `found`, or the children of the second half of the budget, `late`."""
    rows = []
    for method, m in methods_of("nasbench_macro_workers").items():
        cells = m["late"] if kind == "late" else {b: row["found"] for b, row in m["budgets"].items()}
        rows.append([method.replace("1 workers", "1 worker"), *(interval(cell, digits=2) for cell in cells.values())])
    return table(["lag for", *(f"{budget} children" for budget in m["budgets"])], rows)


def lags() -> str:
    """The controller's pick by its update lag, two children an update."""
    methods = methods_of("nasbench_macro_lags")
    budgets = list(methods["lag 0"]["budgets"])
    rows = [[m, *(interval(of["budgets"][b]["found"], digits=2) for b in budgets)] for m, of in methods.items()]
    return table(["", *(f"{budget} children" for budget in budgets)], rows)


TABLES = {f.__name__: f for f in (answer, rules, tests, policy, windows, lags)}
TABLES |= {f"changes_{kind}": partial(changes, kind) for kind in ("found", "samples")}
TABLES |= {kind: partial(staleness, kind) for kind in ("found", "late")}
TABLES |= {name: partial(comparison, name) for name in TABLED}
TABLES |= {f"{name}_lead": partial(lead, name) for name in TABLED}
TABLES |= {name: partial(large, name) for name in ("pairs", "singles")}
