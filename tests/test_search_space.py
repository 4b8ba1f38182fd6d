"""The search spaces: text form, decoding, and what the controller is told of them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import Controller
from search_space import Architecture, PaperSpace, SmallSpace, parse_architecture

spaces = st.builds(SmallSpace, st.integers(1, 6)) | st.builds(PaperSpace, st.integers(1, 6), st.booleans())


@st.composite
def architectures(draw) -> Architecture:
    """Any architecture of any space, from random actions."""
    space = draw(spaces)
    choices = Controller(space.num_choices).token_choices
    return space.decode(draw(st.tuples(*(st.integers(0, n - 1) for n in choices))))


@given(architectures())
def test_text_form_parses_back(architecture):
    assert parse_architecture(str(architecture)) == architecture


def test_the_default_space_has_729_networks_each_with_its_own_name():
    space = SmallSpace()
    assert space.names == ["kernel", "filters", "padding"] * 2
    names = {str(space.decode(actions)) for actions in itertools.product(range(3), repeat=6)}
    assert len(names) == 729 and {"k3f8p0-k3f8p0", "k7f32p2-k7f32p2"} < names
    assert str(space.decode([1, 1, 0, 1, 2, 1])) == "k5f16p0-k5f32p1"


def test_the_papers_space_by_hand():
    """Tokens of a layer: height, width, filters, then a skip from each earlier layer; with strides, five and skips."""
    space = PaperSpace(3)
    assert space.names == ["height", "width", "filters", "inputs"] * 3
    assert str(space.decode([1, 2, 0, 0, 0, 3, 1, 3, 1, 1, 0, 1])) == "c3x5f24-c1x1f64i1-c7x3f36i2"
    assert str(space.decode([1, 2, 0])) == "c3x5f24"  # a shallower network
    space = PaperSpace(2, strides=True)
    assert str(space.decode([1, 1, 0, 2, 1, 2, 2, 0, 0, 0, 0])) == "c3x3f36s1x3-c5x5f24"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "k5",
        "k4f16p0",
        "k5f17p0",
        "k5f16p3",
        "k5f16p0-",
        "K5f16p0",
        "k05f16p0",
        "k5f16p0 ",
        "k\u0665f16p0",
        "k5f16p0\n",
        "c3x3",
        "c2x3f36",
        "c3x3f32",
        "c3x3f36s4x1",
        "c3x3f36s1x1",  # left out where both are 1
        "c3x3f36i1",  # no layer before it
        "c3x3f36-c3x3f36i2",  # not before it
        "c3x3f36-c3x3f36-c3x3f36i2.1",
        "c3x3f36-c3x3f36i1.1",
        "c3x3f36-k5f16p0",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"architecture|search space"):
        parse_architecture(text)


@given(st.text(alphabet="kfpcsi.-0123456789x", max_size=20))
def test_any_text_is_an_architecture_that_prints_the_same_or_a_value_error(text):
    try:
        assert str(parse_architecture(text)) == text
    except ValueError as error:
        assert repr(text) in str(error)
