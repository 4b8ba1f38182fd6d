"""Figures of a search."""

import io
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from torch import Tensor

from search_space import Architecture, Token
from utils import PictureMissing, write_atomically

matplotlib.rc("text", parse_math=False)  # names of folders and classes may have a $
matplotlib.rc("figure.constrained_layout", use=True)
matplotlib.rc("savefig", dpi=120)
matplotlib.rc("axes.formatter", useoffset=False)
matplotlib.rc("legend", frameon=False, fontsize="small", handlelength=1, columnspacing=1)


def save(folder: Path, figures: dict[str, Callable[[], Figure]]) -> None:
    """Draw figures into the files of a folder, as many as can be; PictureMissing names the others and says why.

    For the end of the program: pictures are the last thing that may fail.
    """
    sys.stdout.flush()
    missing = []
    for name, draw in figures.items():
        file = folder / name
        try:
            if file.exists():
                file.open("ab").close()  # another user's file is not replaced
            content, lacking = as_png(draw)
            write_atomically(file, content)
            if lacking:
                characters = ", ".join(f"U+{character:04X}" for character in sorted(lacking)[:5])
                print(f"{file}: no installed font has {characters}; boxes are in their place", file=sys.stderr)
        except Exception as error:  # the disk, the memory or a font may be its cause
            missing.append(f"{file} ({' '.join(str(error).split()) or type(error).__name__})")
    if missing:
        raise PictureMissing(f"all is done but for pictures that can't be drawn or written: {', '.join(missing)}")


def as_png(draw: Callable[[], Figure]) -> tuple[bytes, set[int]]:
    """As `rendered`, with an installed font that has the characters which the usual one lacks, if there is any."""
    content, lacking = rendered(draw)
    if lacking and (font := font_with(lacking)):
        with matplotlib.rc_context({"font.family": [*matplotlib.rcParams["font.family"], font]}):
            return rendered(draw)
    return content, lacking


def rendered(draw: Callable[[], Figure]) -> tuple[bytes, set[int]]:
    """A figure as PNG, and the code points of characters for which it had no glyph."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw().savefig(content)
    glyphs = [re.match(r"Glyph (\d+) ", str(warning.message)) for warning in caught]
    return content.getvalue(), {int(glyph[1]) for glyph in glyphs if glyph}


def font_with(characters: set[int]) -> str | None:
    """The name of an installed font that has all these code points; None if there is none."""
    usable = (font for font in fontManager.ttflist if not font.name.startswith("Last Resort"))  # it has boxes only
    return next((font.name for font in usable if characters <= get_font(font.fname).get_charmap().keys()), None)


def plot_search(rows: Sequence[dict], best: dict, tokens: Sequence[Token], shares: Sequence, title: str) -> Figure:
    """Each child's accuracy and the best network, and below them the policy's choices over time.

    `rows`: sorted by child; `shares[update][token][choice]`: among samples, of what was sampled then.
    """
    columns = list(dict.fromkeys(token.name.split()[0] for token in tokens))  # a decision each; all inputs are one
    height = min(1.7 * tokens[-1].layer, 16)  # inches, for all layers
    figure = Figure(figsize=(max(9, 1.9 * len(columns)), 3.6 + height))
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.6, height])
    figure.suptitle(title)
    draw_accuracies(top, rows, best)
    draw_choices(bottom, columns, tokens, shares)
    return figure


def draw_accuracies(figure: SubFigure, rows: Sequence[dict], best: dict) -> None:
    """Each child's accuracy, their running mean beside that of the first ones, and the best network.

    Nothing that is drawn as a line can rise unless children get better: a best so far or a mean of what the policy
    remembers would rise on pure noise, too. Failed children are marked, and are in no mean.
    """
    failed = [row["child"] for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    children = np.array([row["child"] for row in rows])
    accuracy = 100 * np.array([row["val_accuracy"] for row in rows])
    window = min(len(rows), max(5, len(rows) // 10))
    running_mean = np.convolve(accuracy, np.ones(window) / window, "valid")
    axes = figure.subplots()
    low, _ = axes.set_ylim(*shown_range(np.append(accuracy, 100 * best["val_accuracy"])))
    axes.plot(children, accuracy, ".", color="0.6", label="child")
    if len(below := children[accuracy < low]):
        axes.plot(below, [low] * len(below), "v", color="0.6", clip_on=False, label="child below")
    if failed:
        axes.plot(failed, [low] * len(failed), "x", color="tab:red", clip_on=False, label="failed")
    axes.axhline(running_mean[0], color="tab:blue", ls=":", label=f"mean of the first {window}")
    axes.plot(children[window - 1 :], running_mean, color="tab:blue", label=f"mean of the latest {window}")
    axes.plot(best["child"], 100 * best["val_accuracy"], "*", color="tab:orange", ms=14, label="best network")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="children trained, in order of sampling", ylabel="validation accuracy, %")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=6, fontsize="medium", handlelength=2)


def draw_choices(figure: SubFigure, columns: list[str], tokens: Sequence[Token], shares: Sequence) -> None:
    """A cell for each layer and decision: the share of each choice over the updates."""
    cells = figure.subplots(tokens[-1].layer, len(columns), squeeze=False)  # sharing their axes takes far longer
    last = max(1, len(shares) - 1)
    tokens_of = {}  # for each cell its token, or those of all inputs
    for t, token in enumerate(tokens[: len(shares[-1])]):  # no network was deeper than the latest
        tokens_of.setdefault((token.layer, token.name.split()[0]), []).append(t)
    for (layer, decision), drawn in tokens_of.items():
        # (updates, tokens, choices): there are fewer updates with a layer that came as the depth grew
        drawn_shares = np.array([[update[t] for t in drawn] for update in shares if len(update) > drawn[-1]])
        first = len(shares) - len(drawn_shares)
        cell, choices = cells[layer - 1, columns.index(decision)], tokens[drawn[0]].choices
        if decision == "input":  # a stripe for each earlier layer, the brighter the more often it is an input
            where = {"origin": "lower", "extent": (first, last, 0.5, layer - 0.5), "aspect": "auto"}
            cell.imshow(drawn_shares[..., 1].T, cmap="gray", vmin=0, vmax=1, **where)
            cell.set_yticks([])
            for j in range(1, layer, 1 + layer // 8):  # there is room for so many labels
                label = {"ha": "right", "va": "center", "bbox": {"fc": "white", "ec": "none", "pad": 1}}
                cell.text(0.97 * last, j, j, fontsize="small", **label)
            if layer == 2:  # the first that has another before it
                cell.set_title(decision, fontsize="medium")
        else:
            colors = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.9, len(choices)))
            cell.stackplot(range(first, len(shares)), 100 * drawn_shares[:, 0].T, colors=colors, labels=choices)
            cell.set_ylim(0, 100)
            if layer == 1:  # all layers have the same choices
                title = {"title": decision.replace("_", " "), "title_fontsize": "medium"}
                cell.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(choices), **title)
        cells[layer - 1, 0].set_ylabel(f"layer {layer}")
    for cell in cells.flat:
        cell.set(xlim=(0, last), visible=cell.has_data())
        cell.label_outer()
    label = "updates of the policy"
    if "input" in columns:
        label += " (input: a stripe for each earlier layer, white where all networks have that input)"
    figure.supxlabel(label, fontsize="medium")
    figure.supylabel("share in the policy, %", fontsize="medium")


def plot_front(rows: Sequence[dict], best: dict, noise: float, title: str) -> Figure:
    """Accuracy against parameters, of all children that did not fail, and the front that leads to the best one.

    `best`: its row; `noise`: the band below it in which networks can't be told from it. The front, numbered and listed:
    smaller networks of which no smaller one is as accurate. What lies above the best was measured once and was lucky.
    """
    rows = [row for row in rows if "error" not in row]
    trained_twice = [row for row in rows if len(row.get("val_accuracies", ())) > 1]
    trained_once = [row for row in rows if row not in trained_twice]
    below = [row for row in rows if all(row[key] < best[key] for key in ("parameters", "val_accuracy"))]
    front = []
    for row in [*sorted(below, key=lambda row: (row["parameters"], -row["val_accuracy"])), best]:
        if not front or row["val_accuracy"] > front[-1]["val_accuracy"]:
            front.append(row)
    figure = Figure(figsize=(10, 4.5))
    axes = figure.subplots()
    for some, style in (
        (trained_once, {"marker": ".", "color": "0.6", "label": "child, trained once"}),
        (trained_twice, {"marker": "o", "ms": 4, "color": "0.3", "label": "finalist, mean of two trainings"}),
        (front, {"ls": "-", "color": "tab:orange", "drawstyle": "steps-post"}),
        ([best], {"marker": "*", "ms": 14, "color": "tab:orange", "label": "best network"}),
    ):
        places = np.array([(row["parameters"], 100 * row["val_accuracy"]) for row in some])
        axes.plot(*places.T, **{"ls": ""} | style)
    accuracy = 100 * best["val_accuracy"]
    band = {"color": "tab:orange", "alpha": 0.12, "lw": 0, "label": "as good as the best, within the noise"}
    axes.axhspan(accuracy - 100 * noise, accuracy, **band)
    for number, row in enumerate(front, start=1):
        place = row["parameters"], 100 * row["val_accuracy"]
        axes.annotate(str(number), place, (-3, 4), textcoords="offset points", ha="right", fontsize="small")
        name = row["architecture"] if len(row["architecture"]) <= 40 else row["architecture"][:39] + "…"
        axes.plot([], [], " ", label=f"{number}  {name}: {place[1]:.2f} %, {place[0]:,} parameters")
    axes.set(xscale="log", xlabel="parameters", ylabel="validation accuracy, %", title=title)
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*shown_range(np.array([100 * row["val_accuracy"] for row in rows])))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def shown_range(accuracy: np.ndarray) -> tuple[float, float]:
    """Limits of an axis of accuracies: a few failures would hide the rest."""
    low, high = np.quantile(accuracy, 0.02), accuracy.max()
    margin = 0.1 * (high - low) or 0.5
    return low - margin, high + margin


def plot_architecture(architecture: Architecture, title: str) -> Figure:
    """A network: each layer's filters, height x width, and an arrow for each input, coloured by its source."""
    labels = ["image"]
    for layer in architecture.layers:
        stride = layer.conv.get("stride", (1, 1))
        more = "" if stride == (1, 1) else "\nstride {} x {}".format(*stride)
        if architecture.hidden:  # a network of the small space; the paper's padding keeps the size
            more += f"\npadding {layer.conv['padding'][0]}"
        elif layer.pool:
            more += "\nmax-pooling"
        labels.append("{} x {}\n{} filters{}".format(*layer.conv["kernel_size"], layer.filters, more))
    labels.append("classifier")
    arrows = [(j, end) for end, layer in enumerate(architecture.layers, start=1) for j in layer.inputs]
    arrows += [(j, len(labels) - 1) for j in architecture.outputs]
    heights = [min(0.2 * (end - start), 1) for start, end in arrows if end > start + 1]  # arrows that pass by a box
    half = 0.5 + max(heights, default=0)  # half the figure's height
    figure = Figure(figsize=(max(7, 1.3 * len(labels)), 2.4 * half))
    axes = figure.subplots()
    style = {"ha": "center", "va": "center", "fontsize": "small", "bbox": {"boxstyle": "round", "fc": "0.93"}}
    boxes = [axes.text(x, 0, label, **style) for x, label in enumerate(labels)]
    for start, end in arrows:
        bend = 0 if end == start + 1 else min(0.4, 2 / (end - start)) * (-1) ** (end % 2)
        style = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "color": f"C{start % 10}"}
        patches = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
        axes.annotate("", (end, 0), (start, 0), arrowprops=style | patches)
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-half, half), title=title)
    axes.axis("off")
    return figure


def plot_confusions(confusions: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Which share of each class's images (a row) is taken for which class (a column)."""
    shares = 100 * confusions / confusions.sum(1, keepdim=True).clamp(min=1)
    inches = max(5, 0.35 * len(classes))
    figure = Figure(figsize=(inches + 2, inches + 1))
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    for row, column in shares.ge(0.5).nonzero().tolist():
        color = "black" if shares[row, column] < 50 else "white"
        style = {"ha": "center", "va": "center", "fontsize": "x-small", "color": color}
        axes.text(column, row, f"{shares[row, column]:.0f}", **style)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=90)
    axes.set_yticks(range(len(classes)), names)
    axes.set(xlabel="taken for", ylabel="class", title=f"{title}\n% of each class's test images")
    return figure
