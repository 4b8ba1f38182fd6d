"""The search spaces: text form, decoding, and what the controller is told of them."""

import itertools
import re
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import ANCHOR, Controller
from search_space import ANCHOR_POINT, Architecture, Layer, PaperSpace, SearchSpace, SmallSpace, parse_architecture

paper_spaces = st.integers(1, 6).flatmap(
    lambda layers: st.builds(PaperSpace, st.just(layers), st.booleans(), st.integers(0, layers - 1))
)
spaces = st.builds(SmallSpace, st.integers(1, 6)) | paper_spaces


@st.composite
def architectures(draw) -> Architecture:
    """Any architecture of any space, from random actions."""
    space = draw(spaces)
    choices = Controller(space.num_choices).token_choices()
    return space.decode(draw(st.tuples(*(st.integers(0, n - 1) for n in choices))))


@given(architectures())
@settings(deadline=None)
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
    "layers, pooling, places",
    [(6, 2, [2, 4]), (15, 2, [5, 10]), (39, 2, [13, 26]), (3, 2, [1, 2]), (5, 1, [2]), (2, 1, [1]), (6, 0, [])],
)
def test_poolings_stand_at_evenly_spaced_layers(layers, pooling, places):
    """An `m` in the text form marks them; a shallower network of the same space has its own places."""
    space = PaperSpace(layers, pooling=pooling)
    architecture = space.decode([0] * len(space.tokens))
    assert [n for n, layer in enumerate(architecture.layers, start=1) if layer.pool] == places
    assert str(architecture) == "-".join("c1x1f24" + "m" * (n in places) for n in range(1, layers + 1))


def test_a_growing_network_moves_its_poolings():
    space = PaperSpace(6, pooling=2)
    three_layers = [0] * len(PaperSpace(3).tokens)
    assert str(space.decode(three_layers)) == "c1x1f24m-c1x1f24m-c1x1f24"


def test_a_pooled_layer_by_hand():
    text = "c3x5f24s2x1m-c1x1f64mi1-c7x3f36i1.2"
    layers = parse_architecture(text).layers
    assert [layer.pool for layer in layers] == [True, True, False]
    assert [layer.inputs for layer in layers] == [(0,), (1,), (1, 2)]
    assert layers[0].conv["stride"] == (2, 1)


def test_the_maps_that_later_layers_need():
    architecture = parse_architecture("c3x3f24-c3x3f24i1-c3x3f24-c3x3f24i1")
    assert [architecture.needed_after(number) for number in range(5)] == [{0}, {0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}]


def test_more_filters_in_every_layer():
    before = parse_architecture("c3x3f24m-c3x1f36i1")
    wider = before.widened(40)
    assert [layer.filters for layer in wider.layers] == [64, 76] and wider.extra_filters == 40
    assert str(wider) == str(before) and wider.outputs == before.outputs and before.widened(0) == before


@pytest.mark.parametrize("space, n", [(SmallSpace(2), 5), (SmallSpace(2), 9), (PaperSpace(3), 11), (PaperSpace(3), 16)])
def test_half_a_layer_or_one_too_many_is_no_network(space, n):
    with pytest.raises((ValueError, KeyError)):
        space.decode([0] * n)


def small_layer(text: str, number: int) -> Layer:
    """A layer of the small space, from the digits of its text alone."""
    kernel, filters, padding = map(int, re.findall("[0-9]+", text))
    conv = {"kernel_size": (kernel, kernel), "padding": (padding, padding)}
    return Layer(text, filters, conv, (number - 1,), pool=True)


def test_all_values_of_the_small_space():
    """Every value of every decision, as data; kernel 3 and 7 meet each other, so no place can take another's."""
    kernels, filters, paddings = (3, 5, 7), (8, 16, 32), (0, 1, 2)
    decisions = (("kernel", kernels), ("filters", filters), ("padding", paddings))
    space = SmallSpace()
    assert space == SmallSpace(2) and SmallSpace.decisions == decisions
    assert SmallSpace.choices == {"kernel": kernels, "filters": filters, "padding": paddings}
    assert space.num_choices == [3] * 6 and SmallSpace(3).names == ["kernel", "filters", "padding"] * 3
    assert space.tokens == [(layer, *decision) for layer in (1, 2) for decision in decisions]
    for actions in itertools.product(range(3), repeat=6):
        texts = [f"k{kernels[k]}f{filters[f]}p{paddings[p]}" for k, f, p in (actions[:3], actions[3:])]
        expected = Architecture((small_layer(texts[0], 1), small_layer(texts[1], 2)), 84)
        assert space.decode(actions) == expected == parse_architecture("-".join(texts))
    assert expected.outputs == (2,) and str(expected) == "k7f32p2-k7f32p2"


def test_all_values_of_the_papers_space():
    """§4.1: heights and widths 1, 3, 5, 7, filters 24, 36, 48, 64, strides 1, 2, 3; an anchor point ends a layer."""
    sides, strides, filters = (1, 3, 5, 7), (1, 2, 3), (24, 36, 48, 64)
    assert ANCHOR_POINT == ("inputs", ()) and ANCHOR == 0
    plain = (("height", sides), ("width", sides), ("filters", filters), ("inputs", ()))
    strided = (*plain[:2], ("stride_height", strides), ("stride_width", strides), *plain[2:])
    assert PaperSpace() == PaperSpace(2, strides=False) and PaperSpace().decisions == plain
    assert PaperSpace(strides=True).decisions == strided and PaperSpace.choices == dict(strided[:-1])
    assert PaperSpace(2).num_choices == [4, 4, 4, 0] * 2
    assert PaperSpace(2, True).num_choices == [4, 4, 3, 3, 4, 0] * 2
    assert PaperSpace(3).tokens == [
        *((1, *decision) for decision in plain[:-1]),
        *((2, *decision) for decision in plain[:-1]),
        (2, "input 1", (0, 1)),
        *((3, *decision) for decision in plain[:-1]),
        (3, "input 1", (0, 1)),
        (3, "input 2", (0, 1)),
    ]
    assert PaperSpace(1, True).tokens == [(1, *decision) for decision in strided[:-1]]
    for a, b, c, d, e in itertools.product(range(4), range(4), range(3), range(3), range(4)):
        height, width, stride, n = sides[a], sides[b], (strides[c], strides[d]), filters[e]
        text = f"c{height}x{width}f{n}" + ("" if stride == (1, 1) else f"s{stride[0]}x{stride[1]}")
        conv = {"kernel_size": (height, width), "padding": ((height - 1) // 2, (width - 1) // 2), "stride": stride}
        expected = Architecture((Layer(text, n, conv, (0,), pool=False),), None)
        assert PaperSpace(1, True).decode([a, b, c, d, e]) == expected == parse_architecture(text)
        if stride == (1, 1):
            assert PaperSpace(1).decode([a, b, e]) == expected


def test_skips_are_read_in_the_order_of_the_layers():
    layers = PaperSpace(4).decode([0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1]).layers
    assert [layer.inputs for layer in layers] == [(0,), (1,), (2,), (1, 3)]
    assert [layer.text for layer in layers] == ["c1x1f24", "c1x1f24i1", "c1x1f24i2", "c1x1f24i1.3"]
    layers = PaperSpace(3, True).decode([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 1, 2, 1, 1, 1]).layers
    assert layers[1].inputs == (0,) and layers[2].text == "c7x3f36s2x3i1.2"
    assert layers[2] == parse_architecture("c1x1f24-c1x1f24-c7x3f36s2x3i1.2").layers[2]
    texts = [f"c1x1f24i{number}" if number else "c1x1f24" for number in range(12)]
    assert parse_architecture("-".join([*texts, "c1x1f24i2.10.11"])).layers[12].inputs == (2, 10, 11)


def test_the_classifier_takes_the_layers_that_no_layer_takes():
    for text, outputs in (
        ("k3f8p0", (1,)),
        ("k3f8p0-k3f8p0-k3f8p0", (3,)),
        ("c1x1f24-c1x1f24-c1x1f24", (1, 2, 3)),
        ("c1x1f24-c1x1f24-c1x1f24i2", (1, 3)),
        ("c1x1f24-c1x1f24i1-c1x1f24i1", (2, 3)),
        ("c1x1f24-c1x1f24i1-c1x1f24i1.2", (3,)),
    ):
        assert parse_architecture(text).outputs == outputs, text
    nothing = SmallSpace().decode([])
    assert nothing == Architecture((), 84) and nothing.outputs == () and str(nothing) == ""


@pytest.mark.parametrize(
    "value, name",
    [
        (SearchSpace(), "num_layers"),
        (SmallSpace(), "num_layers"),
        (PaperSpace(), "strides"),
        (parse_architecture("k3f8p0"), "hidden"),
        (parse_architecture("k3f8p0").layers[0], "filters"),
    ],
)
def test_values_stay_as_they_are(value, name):
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, 3)


EXAMPLE = "write one like k5f16p0-k5f32p1 or c3x3f36-c5x1f48i1"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", f"is not an architecture: {EXAMPLE}"),
        ("k5f16p0-", f"is not an architecture: {EXAMPLE}"),
        ("k\u0665f16p0", f"is not an architecture: {EXAMPLE}"),
        ("c\u0663x3f36", f"is not an architecture: {EXAMPLE}"),
        ("c3x3f36s2", f"is not an architecture: {EXAMPLE}"),
        ("c3x3f36i", f"is not an architecture: {EXAMPLE}"),
        ("c3x3f36i1.", f"is not an architecture: {EXAMPLE}"),
        ("c3x3f36-k5f16p0", f"is not an architecture: {EXAMPLE}"),
        ("k5f16p0-c3x3f36", f"is not an architecture: {EXAMPLE}"),
        ("K5f16p0", f"is not an architecture: {EXAMPLE}"),
        ("C3x3f36", f"is not an architecture: {EXAMPLE}"),
        ("k05f16p0", "is not an architecture: write k05f16p0 as k5f16p0"),
        ("c3x3f36s1x1", "is not an architecture: write c3x3f36s1x1 as c3x3f36"),
        ("c3x3f36-c3x3f36-c3x3f36i2.1", "is not an architecture: write c3x3f36i2.1 as c3x3f36i1.2"),
        ("c3x3f36-c3x3f36i1.1", "is not an architecture: write c3x3f36i1.1 as c3x3f36i1"),
        ("k4f16p0", "is outside the search space: kernel 4 is not one of 3, 5, 7"),
        ("k3f8p0-k5f17p0", "is outside the search space: filters 17 is not one of 8, 16, 32"),
        ("k5f16p3", "is outside the search space: padding 3 is not one of 0, 1, 2"),
        ("c2x3f36", "is outside the search space: height 2 is not one of 1, 3, 5, 7"),
        ("c3x9f36", "is outside the search space: width 9 is not one of 1, 3, 5, 7"),
        ("c3x3f32", "is outside the search space: filters 32 is not one of 24, 36, 48, 64"),
        ("c3x3f36i1m", f"is not an architecture: {EXAMPLE}"),
        ("k5f16p0m", f"is not an architecture: {EXAMPLE}"),
        ("c3x3f36-c3x3f36m", "is outside the search space: no max-pooling (m) follows the last layer"),
        ("c3x3f36s4x1", "is outside the search space: stride_height 4 is not one of 1, 2, 3"),
        ("c3x3f36s1x0", "is outside the search space: stride_width 0 is not one of 1, 2, 3"),
        ("c3x3f36i1", "is outside the search space: the inputs of c3x3f36i1 are not layers before it"),
        ("c3x3f36i0", "is outside the search space: the inputs of c3x3f36i0 are not layers before it"),
        ("c3x3f36-c5x3f36i2", "is outside the search space: the inputs of c5x3f36i2 are not layers before it"),
        ("c3x3f36-c5x3f36i1.2", "is outside the search space: the inputs of c5x3f36i1.2 are not layers before it"),
    ],
)
def test_a_refusal_says_what_is_wrong(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_architecture(text)
    assert str(caught.value) == f"{text!r} {reason}"


def test_a_text_of_more_than_1000_characters_a_layer_is_not_read():
    for zeros, reason in ((993, "write k0"), (994, EXAMPLE)):
        text = f"k{'0' * zeros}5f16p0"
        assert len(text) == zeros + 7
        with pytest.raises(ValueError, match=f"is not an architecture: {reason}"):
            parse_architecture(text)


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


@given(st.text(alphabet="kfpcsim.-0123456789x", max_size=20))
@settings(deadline=None)
def test_any_text_is_an_architecture_that_prints_the_same_or_a_value_error(text):
    try:
        assert str(parse_architecture(text)) == text
    except ValueError as error:
        assert repr(text) in str(error)
