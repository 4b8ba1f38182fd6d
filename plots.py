"""Figures of a search."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from search_space import Architecture

matplotlib.rcParams["text.parse_math"] = False  # in names of folders and classes a $ is a $
LEGEND = {"frameon": False, "fontsize": "small", "handlelength": 1, "columnspacing": 1}


def plot_search(
    path: Path, rows: Sequence[dict], best: dict, tokens: Sequence[tuple], preferences: Sequence, title: str
) -> None:
    """Draw each child's accuracy and what is handed over, and below them the policy's choices over time.

    `rows` of the ledger, sorted by child; `best`: the row of the best network; `tokens` of the space;
    `preferences[update][token][choice]`: shares among samples, of the tokens that were sampled then.
    """
    height = min(1.7 * tokens[-1][0], 16)  # inches, for all layers
    width = max(9, 1.9 * len(columns_of(tokens)))
    figure = Figure(figsize=(width, 3.6 + height), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, height])
    figure.suptitle(title)
    draw_accuracies(top, rows, best)
    draw_choices(bottom, tokens, preferences)
    figure.savefig(path, dpi=120)


def draw_accuracies(figure: SubFigure, rows: Sequence[dict], best: dict) -> None:
    """Each child's accuracy, their running mean beside that of the first ones, and the best network.

    Nothing that is drawn as a line can rise unless children get better: a best so far or a mean of what the policy
    remembers would rise on pure noise, too.
    """
    children = [row["child"] for row in rows]
    accuracy = 100 * np.array([row["val_accuracy"] for row in rows])
    window = min(len(rows), max(5, len(rows) // 10))
    running_mean = [accuracy[i + 1 - window : i + 1].mean() for i in range(window - 1, len(rows))]
    axes = figure.subplots()
    low, high = shown_range(accuracy)
    axes.plot(children, accuracy, ".", color="0.6", label="child")
    if below := [child for child, a in zip(children, accuracy, strict=True) if a < low]:
        axes.plot(below, [low] * len(below), "v", color="0.6", clip_on=False, label="child below")
    axes.axhline(running_mean[0], color="tab:blue", ls=":", label=f"mean of the first {window}")
    axes.plot(children[window - 1 :], running_mean, color="tab:blue", label=f"mean of the latest {window}")
    axes.plot(best["child"], 100 * best["val_accuracy"], "*", color="tab:orange", ms=14, label="best network")
    axes.set_ylim(low, high)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="children trained, in order of sampling", ylabel="validation accuracy, %")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=5, frameon=False)


def columns_of(tokens: Sequence[tuple]) -> list[str]:
    """The decisions that a layer consists of; all its inputs are one."""
    return list(dict.fromkeys(name.split()[0] for _, name, _ in tokens))


def draw_choices(figure: SubFigure, tokens: Sequence[tuple], preferences: Sequence) -> None:
    """A cell for each layer and decision: the share of each choice over the updates."""
    columns = columns_of(tokens)
    cells = figure.subplots(tokens[-1][0], len(columns), squeeze=False)  # sharing their axes takes far longer
    last = max(1, len(preferences) - 1)
    for t, (layer, name, choices) in enumerate(tokens):  # fewer are sampled before the depth has grown
        first = next((update for update, shares in enumerate(preferences) if len(shares) > t), None)
        if first is None or (name.startswith("input ") and name != "input 1"):
            continue  # drawn with input 1
        cell, shown = cells[layer - 1, columns.index(name.split()[0])], preferences[first:]
        cell.set(xlim=(0, last), ylim=(0, 100))
        if name == "input 1":  # a stripe for each earlier layer, the brighter the more often it is an input
            stripes = np.array([[share[1] for share in shares[t : t + layer - 1]] for shares in shown]).T
            where = {"origin": "lower", "extent": (first, last, 0, 100), "aspect": "auto"}
            cell.imshow(stripes, cmap="gray", vmin=0, vmax=1, **where)
            cell.set(xlim=(0, last), yticks=[])
            for j in range(1, layer, 1 + layer // 8):  # not more labels than there is room for
                label = {"ha": "right", "va": "center", "bbox": {"fc": "white", "ec": "none", "pad": 1}}
                cell.text(0.97 * last, 100 * (j - 0.5) / (layer - 1), j, fontsize="small", **label)
        else:
            bands = 100 * np.array([shares[t] for shares in shown]).T  # (choices, updates)
            colors = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.9, len(choices)))
            cell.stackplot(range(first, first + len(shown)), bands, colors=colors, labels=choices)
            if cell is cells[0, columns.index(name.split()[0])]:  # all layers have the same choices
                cell.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(choices), **LEGEND)
        if layer == 1 + name.startswith("input"):  # the first layer has no other before it
            cell.set_title(name.split()[0].replace("_", " "), fontsize="medium", pad=22 - 16 * (name == "input 1"))
    for layer, row in enumerate(cells, start=1):
        row[0].set_ylabel(f"layer {layer}")
    for cell in cells.flat:
        cell.set_visible(cell.has_data())
        cell.label_outer()
    stripes = " (input: a stripe for each earlier layer, white where all networks have that input)"
    figure.supxlabel("updates of the policy" + stripes * ("input" in columns), fontsize="medium")
    figure.supylabel("share in the policy, %", fontsize="medium")


def plot_front(path: Path, rows: Sequence[dict], best: dict, noise: float, title: str) -> None:
    """Draw accuracy against parameters, of all children that did not fail, and the front that leads to the best one.

    `best`: its row; `noise`: the band below it in which networks can't be told from it. The front, numbered and listed:
    smaller networks of which no smaller one is as accurate. What lies above the best was measured once and was lucky.
    """
    rows = [row for row in rows if "error" not in row]
    if not rows:
        return
    top, front = best["val_accuracy"], []
    for row in sorted(rows, key=lambda row: (row["parameters"], -row["val_accuracy"])):
        if row["parameters"] < best["parameters"] and row["val_accuracy"] < top:
            front += [row] if not front or row["val_accuracy"] > front[-1]["val_accuracy"] else []
    front.append(best)
    once, twice = (
        [row for row in rows if (len(row.get("val_accuracies", "1")) > 1) == again] for again in (False, True)
    )
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for some, style in (
        (once, {"ls": "", "marker": ".", "color": "0.6", "label": "child, trained once"}),
        (twice, {"ls": "", "marker": "o", "ms": 4, "color": "0.3", "label": "finalist, mean of two trainings"}),
        (front, {"color": "tab:orange", "drawstyle": "steps-post"}),
        ([best], {"ls": "", "marker": "*", "ms": 14, "color": "tab:orange", "label": "best network"}),
    ):
        if some:
            axes.plot(*zip(*((row["parameters"], 100 * row["val_accuracy"]) for row in some), strict=True), **style)
    band = {"color": "tab:orange", "alpha": 0.12, "lw": 0, "label": "as good as the best, within the noise"}
    axes.axhspan(100 * (top - noise), 100 * top, **band)
    for number, row in enumerate(front, start=1):
        place = row["parameters"], 100 * row["val_accuracy"]
        axes.annotate(str(number), place, (-3, 4), textcoords="offset points", ha="right", fontsize="small")
        name = row["architecture"] if len(row["architecture"]) <= 40 else row["architecture"][:39] + "…"
        axes.plot([], [], " ", label=f"{number}  {name}: {place[1]:.2f} %, {place[0]:,} parameters")
    axes.set(xscale="log", xlabel="parameters", ylabel="validation accuracy, %", title=title)
    axes.set_ylim(*shown_range(np.array([100 * row["val_accuracy"] for row in rows])))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), **LEGEND)
    figure.savefig(path, dpi=120)


def shown_range(accuracy: np.ndarray) -> tuple[float, float]:
    """Limits of an axis of accuracies: a few failures would hide the rest."""
    low, high = np.quantile(accuracy, 0.02), accuracy.max()
    margin = 0.1 * (high - low) or 0.5
    return low - margin, high + margin


def plot_architecture(path: Path, architecture: Architecture, title: str) -> None:
    """Draw a network: each layer's filters, height x width, and an arrow for each input, coloured by its source."""
    labels = ["image"]
    for layer in architecture.layers:
        stride = layer.conv.get("stride", (1, 1))
        stride = "" if stride == (1, 1) else "\nstride {} x {}".format(*stride)
        labels.append("{} x {}\n{} filters{}".format(*layer.conv["kernel_size"], layer.filters, stride))
    labels.append("classifier")
    figure = Figure(figsize=(max(7, 1.3 * len(labels)), 3), layout="constrained")
    axes = figure.subplots()
    style = {"ha": "center", "va": "center", "fontsize": "small", "bbox": {"boxstyle": "round", "fc": "0.93"}}
    boxes = [axes.text(x, 0, label, **style) for x, label in enumerate(labels)]
    for end, starts in enumerate([*(layer.inputs for layer in architecture.layers), architecture.outputs], start=1):
        for start in starts:
            bend = 0 if end == start + 1 else min(0.4, 2 / (end - start)) * (-1) ** (end % 2)
            style = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "color": f"C{start % 10}"}
            patches = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
            axes.annotate("", (end, 0), (start, 0), arrowprops=style | patches)
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-1.2, 1.2), title=title)
    axes.axis("off")
    figure.savefig(path, dpi=120)


def plot_confusions(path: Path, confusions: Tensor, classes: Sequence[str], title: str) -> None:
    """Draw which share of each class's images (a row) is taken for which class (a column)."""
    shares = 100 * confusions / confusions.sum(1, keepdim=True).clamp(min=1)
    inches = max(5, 0.35 * len(classes))
    figure = Figure(figsize=(inches + 2, inches + 1), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    for row, column in shares.ge(0.5).nonzero().tolist():
        style = {"ha": "center", "va": "center", "fontsize": "x-small", "color": "wk"[shares[row, column] < 50]}
        axes.text(column, row, f"{shares[row, column]:.0f}", **style)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=90)
    axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="taken for", ylabel="class", title=f"{title}\n% of each class's test images")
    figure.savefig(path, dpi=120)
