"""The tables of pages that compare methods of searching, from results/search_quality_<name>.json."""

from functools import partial

from benchmarks.common import interval, read, shown, table
from benchmarks.search_quality import CHANGES
from benchmarks.summary import EVERYTHING, SAME_TIME

OURS = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST"}  # with fresh trainings
TABLED = OURS | {"nasbench_macro": "NAS-Bench-Macro", "nasbench201": "NAS-Bench-201"}
# Methods are called here as in the files in results/.
TEN_PENDING = ("regularised evolution, 10 under way", "local search, 10 under way", "TPE, 10 under way")
SHORT = ("controller", "random search", TEN_PENDING[0], TEN_PENDING[2], "paper's controller")


def methods_of(name: str) -> dict:
    return read(f"search_quality_{name}.json")["methods"]


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


def columns_of(name: str) -> dict[str, tuple[str, str]]:
    """The budget and the kind of pick in each column: picks at all budgets, and with finalists at the last two."""
    budgets = list(methods_of(name)["controller"]["budgets"])
    columns = {budget: (budget, "found") for budget in budgets}
    return columns | {f"{budget}, with finalists": (budget, "finals") for budget in budgets[-2:]}


def comparison(name: str) -> str:
    """True accuracy of each method's pick on a table, and in brackets its rank."""
    columns = columns_of(name)
    rows = []
    for method, of in methods_of(name).items():
        if method != EVERYTHING:
            rows.append([method, *(with_rank(of["budgets"][b][kind]) for b, kind in columns.values())])
    return table(["trainings", *columns], rows)


def lead(name: str) -> str:
    """The controller's lead over each method."""
    columns = columns_of(name)
    rows = []
    for method, of in methods_of(name).items():
        if method not in ("controller", EVERYTHING):
            some = [of["budgets"][b][kind] for b, kind in columns.values()]
            rows.append([method, *(f"{100 * row['controller_ahead']:+.3f} (p {row['p']:.3f})" for row in some)])
    return table(["lead over", *columns], rows)


def by_rule(name: str) -> str:
    """Picks by the rule of the baseline methods, the reward alone, and by the controller's."""
    places = [(b, kind) for kind in ("found", "finals") for b in ("100", "200")]
    rows = []
    for method, of in methods_of(name).items():
        ends = ("_reward", "") if "found_reward" in of["budgets"]["100"] else ("", "_smoothed")
        if f"found{ends[1]}" in of["budgets"]["100"] and method not in (SAME_TIME, EVERYTHING):
            rows.append([method, *(with_rank(of["budgets"][b][kind + end]) for b, kind in places for end in ends)])
    words = [f"{b}{', with finalists' if kind == 'finals' else ''}" for b, kind in places]
    return table(["", *(f"{word}: by {rule}" for word in words for rule in ("reward", "both"))], rows)


def tests() -> str:
    """Test accuracy, which no method sees, of the picks with finalists."""
    labels = {name: label for name, label in TABLED.items() if name != "nasbench_macro"}  # which has no other accuracy
    places = [(methods_of(name), b) for name in labels for b in ("100", "200")]
    rows = [
        [m, *(interval(of[m]["budgets"][b]["finals"], "test") if m in of else "" for of, b in places)]
        for m in places[0][0]
    ]
    header = [f"{label}, {b}" for label in labels.values() for b in ("100", "200")]
    return table(["test accuracy", *header], rows)


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


def large(name: str) -> str:
    """A generated space: each method's pick, and its last children, in standard deviations of the space."""
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


TABLES = {f.__name__: f for f in (answer, tests, policy, windows, lags)}
TABLES |= {f"changes_{kind}": partial(changes, kind) for kind in ("found", "samples")}
TABLES |= {kind: partial(staleness, kind) for kind in ("found", "late")}
TABLES |= {name: partial(comparison, name) for name in TABLED}
TABLES |= {f"{name}_lead": partial(lead, name) for name in TABLED}
TABLES |= {f"{name}_rule": partial(by_rule, name) for name in TABLED}
TABLES |= {name: partial(large, name) for name in ("pairs", "singles")}
