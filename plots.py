"""Figures of a search."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def plot_search(
    path: Path,
    rows: Sequence[dict],  # of the ledger, sorted by child
    decisions: Sequence[tuple[str, Sequence[int]]],  # name and choices of each step
    preferences: Sequence[Sequence[Sequence[float]]],  # [update][step][choice], shares
    title: str,
) -> None:
    """Draw each child's reward with running mean and best so far, and below it the policy's choices over time."""
    per_row = len(set(name for name, _ in decisions))
    grid_rows = -(-len(decisions) // per_row)
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

    cells = bottom.subplots(grid_rows, per_row, squeeze=False, sharex=True, sharey=True).flat
    for step, ((name, choices), cell) in enumerate(zip(decisions, cells, strict=False)):
        shares = np.array([update[step] for update in preferences]).T  # (choices, updates)
        colors = plt.cm.viridis(np.linspace(0.15, 0.9, len(choices)))
        cell.stackplot(np.arange(len(preferences)), shares, labels=choices, colors=colors)
        cell.set_title(f"{name}, layer {step // per_row + 1}", fontsize="medium")
        cell.set(ylim=(0, 1), xlim=(0, max(1, len(preferences) - 1)))
        if step < per_row:
            cell.legend(loc="upper left", fontsize="small", ncols=len(choices))
    bottom.supxlabel("updates of the policy", fontsize="medium")
    bottom.supylabel("share in the policy", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
