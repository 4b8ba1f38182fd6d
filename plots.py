"""Figures of a search."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from model import Architecture


def plot_search(
    path: Path,
    rows: Sequence[dict],  # of the ledger, sorted by child
    tokens: Sequence[tuple[int, str, Sequence[int]]],  # layer (from 1), name and choices of each
    preferences: Sequence[Sequence[Sequence[float]]],  # [update][token][choice], shares
    title: str,
) -> None:
    """Draw each child's reward with running mean and best so far, and below it the policy's choices over time."""
    columns = list(dict.fromkeys(name.split()[0] for _, name, _ in tokens))  # all inputs of a layer share a cell
    num_layers = tokens[-1][0]
    height = min(1.7 * num_layers, 16)  # inches
    figure = plt.figure(figsize=(9, 3.6 + height), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, height])
    figure.suptitle(title)

    rewards = np.array([row["reward"] for row in rows])
    children = np.array([row["child"] + 1 for row in rows])
    window = max(5, len(rewards) // 10)
    running_mean = [rewards[max(0, i + 1 - window) : i + 1].mean() for i in range(len(rewards))]
    axes = top.subplots()
    axes.plot(children, rewards, ".", color="0.6", label="child")
    axes.plot(children, running_mean, color="tab:blue", label=f"mean of the last {window}")
    axes.plot(children, np.maximum.accumulate(rewards), color="tab:orange", drawstyle="steps-post", label="best so far")
    low, high = np.quantile(rewards, 0.02), rewards.max()
    margin = 0.1 * (high - low) + 1e-4
    axes.set_ylim(low - margin, high + margin)  # a few failures would hide the rest
    axes.set(xlabel="children trained, in order of sampling", ylabel="reward (validation accuracy)")
    axes.legend(loc="lower right", ncols=3)

    cells = bottom.subplots(num_layers, len(columns), squeeze=False, sharex=True, sharey=True)
    last = len(preferences) - 1
    for (layer, name, choices), shares in zip(tokens, zip(*preferences, strict=True), strict=True):
        kind, *number = name.split()
        cell, bands = cells[layer - 1, columns.index(kind)], np.array(shares).T  # (choices, updates)
        if number:  # a stripe for each earlier layer, the brighter the more often it is an input
            low, high = (int(number[0]) - 1) / (layer - 1), int(number[0]) / (layer - 1)
            cell.imshow(bands[1:], aspect="auto", cmap="gray", vmin=0, vmax=1, extent=(0, max(1, last), low, high))
            cell.text(0.97 * last, (low + high) / 2, number[0], ha="right", va="center", color="tab:red")
        else:
            colors = plt.cm.viridis(np.linspace(0.15, 0.9, len(choices)))
            cell.stackplot(range(last + 1), bands, colors=colors)
            for choice, high, share, color in zip(choices, bands[:, -1].cumsum(), bands[:, -1], colors, strict=True):
                ink = "white" if color[:3].mean() < 0.5 else "black"
                if share > 0.1:
                    cell.text(0.97 * last, high - share / 2, choice, ha="right", va="center", color=ink)
        cell.set(ylim=(0, 1), xlim=(0, max(1, last)))
        if layer == 1 + bool(number):  # the first layer has no other before it
            cell.set_title(kind.replace("_", " "), fontsize="medium")
    for layer, row in enumerate(cells, start=1):
        row[0].set_ylabel(f"layer {layer}")
    for cell in cells.flat:
        cell.set_visible(cell.has_data())
    stripes = " (input: a stripe for each earlier layer, white where all networks have that input)"
    bottom.supxlabel("updates of the policy" + stripes * ("input" in columns), fontsize="medium")
    bottom.supylabel("share in the policy", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_architecture(path: Path, architecture: Architecture, title: str) -> None:
    """Draw a network: each layer's filter size and number of filters, and an arc for each skip connection."""
    labels = ["image"]
    for layer in architecture.layers:
        stride = "" if layer.stride == (1, 1) else "\nstride {} x {}".format(*layer.stride)
        labels.append(f"{layer.height} x {layer.width}\n{layer.filters}{stride}")
    labels.append("classifier")
    figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(labels)), 3), layout="constrained")
    boxes = [
        axes.text(x, 0, label, ha="center", va="center", fontsize="small", bbox={"boxstyle": "round", "fc": "0.93"})
        for x, label in enumerate(labels)
    ]
    for end, starts in enumerate([*architecture.inputs, architecture.outputs], start=1):
        for start in starts:
            bend = 0 if end == start + 1 else min(0.4, 2 / (end - start)) * (-1) ** (end % 2)
            style = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "color": f"C{start % 10}"}
            patches = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
            axes.annotate("", (end, 0), (start, 0), arrowprops=style | patches)
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-1.2, 1.2), title=title)
    axes.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)
