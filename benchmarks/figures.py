"""Figures of README from the files in results/ (drawn by `python -m benchmarks.readme`)."""

import csv
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.common import RESULTS
from benchmarks.search_quality import TOP

METHODS = {  # of search_quality.py: label, colour
    "controller": ("controller", "tab:blue"),
    "paper's controller": ("paper's settings", "tab:cyan"),
    "regularised evolution, 10 under way": ("regularised evolution, 10 under way", "tab:green"),
    "TPE, 10 under way": ("TPE, 10 under way", "tab:orange"),
    "random search": ("random search", "0.5"),
}


def band(axes: plt.Axes, x: list, mean: list, ci: list, scale: float = 100, **style) -> None:
    """A line with its 95 % interval."""
    mean, ci = scale * np.array(mean), scale * np.array(ci)
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, mean - ci, mean + ci, color=line.get_color(), alpha=0.2, lw=0)


def search_quality(name: str, title: str) -> None:
    """Left: what each method would hand over. Right: the controller's lead over random search (paper, Figure 6)."""
    result = json.loads((RESULTS / f"search_quality_{name}.json").read_text())
    grid, methods = result["grid"], result["methods"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for method, (label, colour) in METHODS.items():
        curves = methods[method]["curves"]
        band(left, grid, curves["truth"], curves["truth_ci"], color=colour, label=label)
    bound = methods["everything"]["budgets"]["200"]["found"]["truth"]
    left.axhline(100 * bound, color="k", ls=":", lw=1, label="all networks trained once")
    low = 100 * methods["random search"]["curves"]["truth"][1]
    left.set(xlabel="children trained", ylabel="true accuracy of the best observed, %", ylim=(low, None), title=title)
    left.legend(fontsize="small", loc="lower right")
    curves = methods["controller"]["curves"]
    for k, colour in zip(TOP, ("tab:blue", "tab:purple", "tab:red"), strict=True):
        label = f"top {k}" if k > 1 else "top 1"
        band(right, grid, curves[f"top{k}_above_random"], curves[f"top{k}_above_random_ci"], color=colour, label=label)
    right.axhline(0, color="0.5", lw=1)
    right.set(xlabel="children trained", ylabel="mean reward of the top k,\npoints above random search",
              title="controller minus random search")  # fmt: skip
    right.legend(fontsize="small", title="mean of the")
    figure.suptitle(
        f"means of {methods['controller']['budgets']['200']['found']['n']} searches, 95 % intervals", fontsize="medium"
    )
    figure.savefig(RESULTS / f"search_quality_{name}.png", dpi=120)
    plt.close(figure)


def landscape() -> None:
    """Every network of the default space as a cell: first layer down, second layer across."""
    rows = list(csv.DictReader((RESULTS / "mnist_space.csv").open()))
    found = json.loads((RESULTS / "mnist" / "best.json").read_text())["architecture"]
    layers = sorted(
        {row["architecture"].split("-")[0] for row in rows},
        key=lambda text: [int(n) for n in text[1:].replace("f", " ").replace("p", " ").split()],
    )
    accuracy = np.full((len(layers), len(layers)), np.nan)
    for row in rows:
        first, second = row["architecture"].split("-")
        accuracy[layers.index(first), layers.index(second)] = 100 * float(row["val_mean"] or "nan")
    figure, axes = plt.subplots(figsize=(9, 7.6), layout="constrained")
    image = axes.imshow(accuracy, vmin=np.nanquantile(accuracy, 0.02), cmap="viridis")
    first, second = found.split("-")
    axes.plot(
        layers.index(second),
        layers.index(first),
        "s",
        ms=13,
        mfc="none",
        mec="red",
        mew=2,
        label=f"found by the search: {found}",
    )
    i, j = np.unravel_index(np.nanargmax(accuracy), accuracy.shape)
    axes.plot(j, i, "D", ms=9, mfc="none", mec="black", mew=1.5, label=f"best of the space: {layers[i]}-{layers[j]}")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize="small")
    axes.set_yticks(range(len(layers)), layers, fontsize="small")
    axes.set(xlabel="second layer (kernel, filters, padding)", ylabel="first layer (kernel, filters, padding)")
    figure.colorbar(image, label="validation accuracy, mean of three trainings, %", extend="min", shrink=0.9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(RESULTS / "landscape.png", dpi=120)
    plt.close(figure)


def main() -> None:
    search_quality("mnist", "MNIST, 729 networks")
    search_quality("nasbench_macro", "NAS-Bench-Macro, 6,561 networks")
    landscape()
