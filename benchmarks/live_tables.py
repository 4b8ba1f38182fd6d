"""The tables of pages on searches with real networks, whose run folders are in results/."""

import json
import statistics

from benchmarks.common import RESULTS, read, spread, table

SEARCHES = {"controller": "mnist", "random search": "mnist-random"}
FASHION = {
    "3 layers, random search": "fashionmnist-paper-random",
    "3 layers, controller": "fashionmnist-paper",
    "the same, half the entropy bonus": "fashionmnist-paper-half",
    "the same, twice the entropy bonus": "fashionmnist-paper-twice",
    "8 layers, random search": "fashionmnist-paper8-random",
    "8 layers, controller": "fashionmnist-paper8",
    "small space, controller": "fashionmnist-paper-small",
}


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
    """Hand-made networks, and the pick."""
    rows: dict[str, list] = {}
    for i, name in enumerate(("mnist", "fashionmnist-two-layers")):
        found = read(name, "evaluation.json")
        for row in ({"name": "the pick"} | found, *found["references"]):
            cells = rows.setdefault(row["name"], [f"{row['name']} (n = {len(row['top1'])})", *[""] * 4])
            cells[1 + 2 * i : 3 + 2 * i] = spread(row["top1"]), f"{row['parameters']:,.0f}"
    return table(["", "MNIST, test", "parameters", "Fashion-MNIST, test", "parameters"], list(rows.values()))


TABLES = {f.__name__: f for f in (searches, fashion, references)}
