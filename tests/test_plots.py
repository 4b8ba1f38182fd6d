"""What the pictures show, read back from the axes."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import plots
from search_space import PaperSpace, SmallSpace, parse_architecture


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that were saved."""
    saved, savefig = [], Figure.savefig

    def save(figure: Figure, *arguments, **settings) -> None:
        saved.append(figure)
        savefig(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def rows(n: int) -> list[dict]:
    return [{"child": i, "val_accuracy": 0.9 + i / 1000, "reward": (0.9 + i / 1000) ** 3} for i in range(n)]


def uniform(space, num_tokens: int) -> list[list[float]]:
    return [[1 / len(choices)] * len(choices) for _, _, choices in space.tokens[:num_tokens]]


def test_the_upper_panel_shows_accuracies_in_per_cent_whatever_the_reward(figures, tmp_path):
    space = SmallSpace()
    policy = [(5, 0.905), (30, 0.92)]
    plots.plot_search(tmp_path / "search.png", rows(30), policy, space.tokens, [uniform(space, 6)] * 7, "title")
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "validation accuracy, %" and (tmp_path / "search.png").stat().st_size > 10_000
    children, mean, policy, best = axes.lines
    np.testing.assert_allclose(children.get_ydata(), [90 + i / 10 for i in range(30)])
    np.testing.assert_allclose(best.get_ydata(), children.get_ydata())
    assert mean.get_ydata()[-1] == pytest.approx(92.7)  # of the last five
    np.testing.assert_allclose(policy.get_xydata(), [(5, 90.5), (30, 92)])
    for cell, choices in zip(figures[0].axes[1:4], ("357", ["8", "16", "32"], "012"), strict=True):
        assert [text.get_text() for text in cell.get_legend().get_texts()] == list(choices)


def test_layers_are_drawn_from_the_update_on_in_which_they_are_sampled(figures, tmp_path):
    space = PaperSpace(4)
    two, three = uniform(space, 7), uniform(space, 12)  # tokens of two and of three layers; a fourth never comes
    plots.plot_search(tmp_path / "search.png", rows(9), [], space.tokens, [two, two, three, three, three], "title")
    cells = np.array(figures[0].axes[1:]).reshape(4, 4)  # height, width, filters, input
    first = [[None if not cell.get_visible() else cell.dataLim.x0 for cell in row] for row in cells]
    assert first == [[0, 0, 0, None], [0, 0, 0, 0], [2, 2, 2, 2], [None] * 4]
    (stripes,) = cells[2, 3].images
    assert stripes.get_array().shape == (2, 3) and (stripes.get_array() == 0.5).all()
    assert [text.get_text() for text in cells[2, 3].texts] == ["1", "2"]


def test_every_skip_connection_is_an_arrow(figures, tmp_path):
    architecture = parse_architecture("c3x3f24-c3x5f36s2x1i1-c1x1f48i1.2")
    plots.plot_architecture(tmp_path / "best.png", architecture, "title")
    arrows = [text for text in figures[0].axes[0].texts if hasattr(text, "arrow_patch")]
    assert len(arrows) == 1 + 1 + 2 + 1  # image, 1; 1, 2; 1 and 2, 3; 3, classifier
    assert "3 x 5\n36 filters\nstride 2 x 1" in [text.get_text() for text in figures[0].axes[0].texts]
