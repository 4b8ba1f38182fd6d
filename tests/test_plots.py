"""What the pictures show, read back from the axes."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

import plots
from search_space import PaperSpace, SmallSpace, parse_architecture
from utils import PictureMissing


def rows(n: int) -> list[dict]:
    return [
        {"child": i, "val_accuracy": 0.9 + i / 1000, "parameters": 100 + 10 * i, "architecture": f"a{i}"}
        for i in range(n)
    ]


def uniform(space, num_tokens: int) -> list[list[float]]:
    return [[1 / len(choices)] * len(choices) for _, _, choices in space.tokens[:num_tokens]]


def test_the_upper_panel_shows_children_their_mean_and_the_best_network(tmp_path):
    """Numbered as in the report; a line for the mean of the first, to compare with."""
    space, best = SmallSpace(), {"child": 27, "val_accuracy": 0.935}  # the mean of two trainings
    figure = plots.plot_search(rows(30), best, space.tokens, [uniform(space, 6)] * 7, "title")
    figure.savefig(tmp_path / "search.png")
    axes = figure.axes[0]
    assert axes.get_ylabel() == "validation accuracy, %" and (tmp_path / "search.png").stat().st_size > 10_000
    children, first, mean, star = axes.lines
    np.testing.assert_allclose(children.get_xydata(), [(i, 90 + i / 10) for i in range(30)])
    assert mean.get_xydata()[-1] == pytest.approx((29, 92.7)) and len(mean.get_xydata()) == 26  # of five
    assert set(first.get_ydata()) == {mean.get_ydata()[0]} and mean.get_ydata()[0] == pytest.approx(90.2)
    assert star.get_xydata().tolist() == [[27, 93.5]] and axes.get_ylim()[1] > 93.5
    for cell, choices in zip(figure.axes[1:4], ("357", ["8", "16", "32"], "012"), strict=True):
        assert [text.get_text() for text in cell.get_legend().get_texts()] == list(choices)


def test_failed_children_are_marked_and_are_in_no_mean():
    children = rows(30)
    for child in (3, 28):
        children[child] |= {"val_accuracy": 0.0, "error": "took longer than 1 seconds"}
    figure = Figure()
    plots.draw_accuracies(figure.subfigures(), children, children[29])
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert [child for child, _ in lines["failed"]] == [3, 28] and set(lines["failed"][:, 1]) == {axes.get_ylim()[0]}
    assert axes.get_ylim()[0] > 89 and lines["mean of the latest 5"][-1] == pytest.approx((29, 92.62))


def test_no_line_rises_on_noise():
    """Accuracies that nothing can be learned from, 40 times: every line ends where it began, on average."""
    rises = []
    for seed in range(40):
        noise = np.random.default_rng(seed).uniform(0.98, 0.99, 60)
        children = [{"child": i, "val_accuracy": accuracy} for i, accuracy in enumerate(noise)]
        figure = Figure()
        plots.draw_accuracies(figure.subfigures(), children, children[0])
        lines = [
            line.get_ydata()
            for line in figure.axes[0].lines
            if len(line.get_ydata()) > 1 and line.get_linestyle() != "None"
        ]
        rises.append([line[-1] - line[0] for line in lines])
    mean, error = np.mean(rises, 0), np.std(rises, 0, ddof=1) / 40**0.5
    assert len(mean) >= 2 and (np.abs(mean) <= 3 * error).all()


def test_the_front_leads_to_the_best_network():
    """What lies above it was lucky once, and what is larger is not on the way."""
    children = [row | {"val_accuracies": [0.9] * (1 + (i in (20, 28)))} for i, row in enumerate(rows(30))]
    children[10]["val_accuracy"] = 0.95
    figure = plots.plot_front(children, children[20], 0.004, "title")
    axes = figure.axes[0]
    once, twice, front, star = axes.lines[:4]
    assert len(once.get_xdata()) == 28 and sorted(twice.get_xdata()) == [300, 380]
    expected = [(100 + 10 * i, 90 + i / 10) for i in range(21) if i != 10]
    np.testing.assert_allclose(front.get_xydata(), expected)
    np.testing.assert_allclose(star.get_xydata(), expected[-1:])
    (band,) = axes.patches
    assert band.get_extents().transformed(axes.transData.inverted()).y1 == pytest.approx(92)
    assert band.get_extents().transformed(axes.transData.inverted()).y0 == pytest.approx(91.6)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    ticks = [tick for which in ("major", "minor") for tick in getattr(axes.xaxis, f"get_{which}_ticks")()]
    shown = [tick.label1.get_text() for tick in ticks if low < tick.get_loc() < high]
    assert [text for text in shown if text] == ["100", "200"]


def test_layers_are_drawn_from_the_update_on_in_which_they_are_sampled():
    space = PaperSpace(4)
    two, three = uniform(space, 7), uniform(space, 12)  # tokens of two and of three layers; a fourth never comes
    figure = plots.plot_search(rows(9), rows(9)[3], space.tokens, [two, two, three, three, three], "title")
    cells = np.array(figure.axes[1:]).reshape(4, 4)  # height, width, filters, input
    first = [[None if not cell.get_visible() else cell.dataLim.x0 for cell in row] for row in cells]
    assert first == [[0, 0, 0, None], [0, 0, 0, 0], [2, 2, 2, 2], [None] * 4]
    (stripes,) = cells[2, 3].images
    assert stripes.get_array().shape == (2, 3) and (stripes.get_array() == 0.5).all()
    assert [text.get_text() for text in cells[2, 3].texts] == ["1", "2"]


def test_every_skip_connection_is_an_arrow():
    architecture = parse_architecture("c3x3f24-c3x5f36s2x1i1-c1x1f48i1.2")
    figure = plots.plot_architecture(architecture, "title")
    arrows = [text for text in figure.axes[0].texts if hasattr(text, "arrow_patch")]
    assert len(arrows) == 1 + 1 + 2 + 1  # image, 1; 1, 2; 1 and 2, 3; 3, classifier
    assert "3 x 5\n36 filters\nstride 2 x 1" in [text.get_text() for text in figure.axes[0].texts]
    figure = plots.plot_architecture(parse_architecture("k5f8p2-k3f16p0"), "title")
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels[:4] == ["image", "5 x 5\n8 filters\npadding 2", "3 x 3\n16 filters\npadding 0", "classifier"]
    figure = plots.plot_architecture(parse_architecture("c3x3f24m-c1x1f36i1"), "title")
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert labels[1:3] == ["3 x 3\n24 filters\nmax-pooling", "1 x 1\n36 filters"]


# --- files --------------------------------------------------------------------------------------------------------


def titled(title: str) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.suptitle(title)
    return figure


def test_pictures_that_fail_are_named_and_the_others_are_written(tmp_path):
    def fail():
        raise MemoryError

    (tmp_path / "folder.png").mkdir()
    figures = {"memory.png": fail, "folder.png": lambda: titled("a"), "good.png": lambda: titled("b")}
    with pytest.raises(PictureMissing, match=r"memory\.png \(MemoryError\), .*folder\.png \(.*Is a directory.*\)$"):
        plots.save(tmp_path, figures)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.png", "good.png"]


def test_characters_that_the_usual_font_lacks_are_drawn_with_another_one(tmp_path, capsys):
    """Here one that comes with matplotlib. What no font has is one line, not a warning for each character."""
    with warnings.catch_warnings(action="error"):
        assert plots.rendered(lambda: titled("a \u1d81"))[1] == {0x1D81}
        assert plots.as_png(lambda: titled("a \u1d81"))[1] == set()
        plots.save(tmp_path, {"picture.png": lambda: titled("\U0010fffd \u1d81")})
    assert (tmp_path / "picture.png").exists()
    assert capsys.readouterr().err == (
        f"{tmp_path}/picture.png: no installed font has U+1D81, U+10FFFD; boxes are in their place\n"
    )
