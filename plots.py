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
    columns = list(dict.fromkeys(name.split()[0] for _, name, _ in tokens))  # all skips of a layer share a cell
    grid_rows = tokens[-1][0]
    figure = plt.figure(figsize=(9, 3.6 + 1.7 * grid_rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, 1.7 * grid_rows])
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

    cells = bottom.subplots(grid_rows, len(columns), squeeze=False, sharex=True, sharey=True)
    for token, (layer, name, choices) in enumerate(tokens):
        shares = np.array([update[token] for update in preferences]).T  # (choices, updates)
        cell, updates = cells[layer - 1, columns.index(name.split()[0])], np.arange(len(preferences))
        if name.startswith("input"):
            cell.plot(updates, shares[1], label=name)
            cell.legend(loc="upper left", fontsize="x-small")
        else:
            colors = plt.cm.viridis(np.linspace(0.15, 0.9, len(choices)))
            cell.stackplot(updates, shares, labels=choices, colors=colors)
            if layer == 1:
                cell.legend(loc="upper left", fontsize="small", ncols=len(choices))
        cell.set_title(f"{name.split()[0].replace('_', ' ')}, layer {layer}", fontsize="medium")
        cell.set(ylim=(0, 1), xlim=(0, max(1, len(preferences) - 1)))
    for cell in cells.flat:
        cell.set_visible(cell.has_data())
    bottom.supxlabel("updates of the policy", fontsize="medium")
    bottom.supylabel("share in the policy", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_architecture(path: Path, architecture: Architecture, title: str) -> None:
    """Draw a network from left to right: its layers, and an arc for every input that skips a layer."""
    inputs, outputs = architecture.inputs, architecture.outputs
    labels = ["image", *(str(layer).split("i")[0] for layer in architecture.layers), "classifier"]
    figure, axes = plt.subplots(figsize=(max(6, 1.3 * len(labels)), 3), layout="constrained")
    for x, label in enumerate(labels):
        axes.text(x, 0, label, ha="center", va="center", fontsize="small", bbox={"boxstyle": "round", "fc": "0.93"})
    for end, starts in enumerate([*inputs, outputs], start=1):
        for start in starts:
            bend = 0 if end == start + 1 else -0.4 if end % 2 else 0.4
            style = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 24, "shrinkB": 24}
            axes.annotate("", (end, 0), (start, 0), arrowprops=style)
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-1.2, 1.2), title=title)
    axes.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)
