"""Figures of README and docs/ from the files in results/ (drawn by `python -m benchmarks.readme`)."""

import csv
import itertools
import json
import statistics
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.common import RESULTS, input_errors, shown
from benchmarks.spaces import read_table
from benchmarks.summary import TOP
from model import Recipe
from search_space import SmallSpace

METHODS = {  # of search_quality.py, and their colours
    "controller": "tab:blue",
    "paper's controller": "tab:cyan",
    "regularised evolution, 10 under way": "tab:green",
    "TPE, 10 under way": "tab:orange",
    "random search": "0.5",
}
LAYERS = [str(SmallSpace(1).decode(layer)) for layer in itertools.product(range(3), repeat=3)]
OUTSIDE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.08), "ncols": 3, "fontsize": "small", "frameon": False}


def band(axes: plt.Axes, x: list, mean: list, ci: list, scale: float = 100, **style) -> None:
    """A line of fractions in %, or of other values times `scale`, with its 95 % interval."""
    mean, ci = scale * np.array(mean), scale * np.array(ci)
    (line,) = axes.plot(x, mean, **style)
    axes.fill_between(x, mean - ci, mean + ci, color=line.get_color(), alpha=0.2, lw=0)


def draw_methods(axes: plt.Axes, result: dict, methods: Sequence[str]) -> None:
    """True accuracy of each method's pick over the number of trainings."""
    for method in methods:
        curves = result["methods"][method]["curves"]
        band(axes, result["grid"], curves["truth"], curves["truth_ci"], color=METHODS[method], label=shown(method))
    low = 100 * result["methods"]["random search"]["curves"]["truth"][1]
    axes.set(xlabel="networks trained", ylabel="true accuracy of the pick, %", ylim=(low, None))
    axes.grid(alpha=0.3)


def first_page() -> None:
    """The controller and the main baseline methods on Fashion-MNIST, each line with its name."""
    result = json.loads((RESULTS / "search_quality_fashionmnist.json").read_text())
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    draw_methods(axes, result, [method for method in METHODS if method != "paper's controller"])
    axes.legend(**OUTSIDE | {"bbox_to_anchor": (0.5, 1), "ncols": 2})
    figure.savefig(RESULTS / "fashionmnist_picks.png", dpi=120)
    plt.close(figure)


def search_quality(name: str) -> None:
    """Left: what each method picks. Right: the controller's lead over random search (paper, Figure 6)."""
    result = json.loads((RESULTS / f"search_quality_{name}.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    draw_methods(left, result, list(METHODS))
    bound = 100 * result["methods"]["everything"]["budgets"]["200"]["found"]["truth"]
    left.axhline(bound, color="k", ls=":", lw=1, label="after training all networks once")
    left.set_title("what is picked")
    left.legend(**OUTSIDE | {"ncols": 2})
    curves = result["methods"]["controller"]["curves"]
    for k, colour in zip(TOP, ("tab:blue", "tab:purple", "tab:red"), strict=True):
        ahead = curves[f"top{k}_above_random"], curves[f"top{k}_above_random_ci"]
        band(right, result["grid"], *ahead, color=colour, label="the best" if k == 1 else f"mean of the best {k}")
    right.axhline(0, color="0.5", lw=1)
    right.set(
        xlabel="networks trained",
        ylabel="points above random search",
        title="the best rewards seen, which are partly luck",
    )
    right.grid(alpha=0.3)
    right.legend(**OUTSIDE)
    figure.savefig(RESULTS / f"search_quality_{name}.png", dpi=120)
    plt.close(figure)


def large_spaces() -> None:
    """What is picked in the generated spaces, in standard deviations of the space."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    titles = {"singles": "a sum of single decisions", "pairs": "a sum over pairs of decisions"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        result = json.loads((RESULTS / f"search_quality_{name}.json").read_text())
        for method, colour in METHODS.items():
            curves = result["methods"][method]["curves"]
            band(axes, result["grid"], curves["truth"], curves["truth_ci"], scale=1, color=colour, label=shown(method))
        axes.set(xlabel="evaluations", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("value of the pick, standard deviations")
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(RESULTS / "large_spaces.png", dpi=120)
    plt.close(figure)


def reward_fidelity() -> None:
    """The final accuracy against one reward, of version 1.0.0's length and of today's, the best tenth marked."""
    found = json.loads((RESULTS / "reward_fidelity.json").read_text())["recipes"]
    value: dict = {}
    for row in csv.DictReader((RESULTS / "reward_fidelity.csv").open()):
        value.setdefault((row["recipe"], row["architecture"], row["group"]), []).append(
            100 * float(row["val_accuracy"])
        )
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axes, name in zip(panels, ("0.6 epochs", f"{Recipe.epochs:g} epochs"), strict=True):
        for group, colour, label in (("best tenth", "tab:orange", "best tenth"), ("range", "tab:blue", "others")):
            some = [(rewards[0], a) for (recipe, a, of), rewards in value.items() if (recipe, of) == (name, group)]
            points = [(reward, statistics.fmean(value["final", a, group])) for reward, a in some]
            axes.plot(*zip(*points, strict=True), "o", ms=5, color=colour, label=label)
        title = "{}, {:.1f} core-seconds: rank correlation {:.2f}"
        axes.set_title(title.format(name, found[name]["seconds"], found[name]["all_val"]), fontsize="medium")
        axes.set_xlabel("validation accuracy in the search, %")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("final validation accuracy, %")
    panels[0].legend(frameon=False)
    figure.savefig(RESULTS / "reward_fidelity.png", dpi=120)
    plt.close(figure)


def scaling() -> None:
    """Share of worker time used against the number of workers."""
    result = json.loads((RESULTS / "scaling.json").read_text())
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for (name, rows), style in zip(result["simulated"].items(), ("o-", "x:"), strict=True):
        points = [(row["workers"], 100 * row["used_without_drain"]) for row in rows]
        axes.plot(*zip(*points, strict=True), style, label=shown(name).replace("samples", "children"))
    workers = [row["workers"] for row in rows if row["workers"] != 800]
    axes.set_xscale("log", base=2)
    axes.set_xticks(workers, workers)
    axes.set(xlabel="workers", ylabel="simulated: worker time used for training, %", ylim=(0, 104))
    axes.legend(**OUTSIDE | {"bbox_to_anchor": (0.5, 1)})
    axes.grid(alpha=0.3)
    figure.savefig(RESULTS / "scaling.png", dpi=120)
    plt.close(figure)


def landscape() -> None:
    """Every network of the default space as a cell: first layer down, second layer across."""
    figure, panels = plt.subplots(1, 2, figsize=(14, 7), layout="constrained", sharey=True)
    for axes, (name, title) in zip(panels, {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST"}.items(), strict=True):
        table = read_table(RESULTS / f"{name}_space.csv")
        by_layer = 100 * table.true_accuracy.reshape(27, 27)  # the networks in the order of their choices
        image = axes.imshow(by_layer, vmin=np.quantile(by_layer, 0.02), cmap="viridis")
        i, j = np.unravel_index(by_layer.argmax(), by_layer.shape)
        axes.plot(j, i, "s", ms=11, mfc="none", mec="red", mew=2, label=f"the best: {LAYERS[i]}-{LAYERS[j]}")
        axes.set_xticks(range(27), LAYERS, rotation=90, fontsize="small")
        axes.set_yticks(range(27), LAYERS, fontsize="small")
        axes.set(title=title, xlabel="second layer (kernel, filters, padding)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
        figure.colorbar(image, label="validation accuracy, % (triangle: less)", extend="min", shrink=0.8)
    panels[0].set_ylabel("first layer (kernel, filters, padding)")
    figure.savefig(RESULTS / "landscape.png", dpi=120)
    plt.close(figure)


@input_errors()
def main() -> None:
    first_page()
    for name in ("mnist", "fashionmnist", "nasbench_macro", "nasbench201"):
        search_quality(name)
    large_spaces()
    reward_fidelity()
    scaling()
    landscape()
