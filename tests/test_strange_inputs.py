"""The judge of `python -m benchmarks.strange_inputs`; the inputs themselves take minutes and are run by hand."""

import pytest

from benchmarks import strange_folders, strange_pictures, strange_surroundings  # noqa: F401  (they register their inputs)
from benchmarks.strange_inputs import INPUTS, Input, Outcome, verdict

LINE = "train.py: set: 1 of 3 is wrong\n"


@pytest.mark.parametrize(
    "outcome, expected",
    [
        (Outcome(None, "best"), "HANG"),
        (Outcome(1, "Traceback (most recent call last):\nbest"), "TRACEBACK"),
        (Outcome(0, "best\nException ignored in: <stdout>"), "TRACEBACK"),
        (Outcome(1, "best"), "EXIT CODE 1"),
        (Outcome(-9, ""), "EXIT CODE -9"),
        (Outcome(0, "nothing of the kind"), "SILENT"),
        (Outcome(2, LINE.replace("wrong", "so")), "UNCLEAR"),
        (Outcome(2, LINE + LINE), "2 LINES"),
        (Outcome(2, LINE), "one line"),
        (Outcome(0, "the best one"), "fine"),
    ],
)
def test_what_became_of_an_input(outcome, expected):
    assert verdict(Input("name", None, (0, 2), "best|wrong"), outcome) == expected


def test_where_only_an_error_is_right_it_is_clear_by_itself():
    outcome = Outcome(2, "best\n" + LINE.replace("wrong", "so"))
    assert verdict(Input("name", None, (2,), "best"), outcome) == "UNCLEAR"
    assert verdict(Input("name", None, (0, 2), "best"), outcome) == "one line"


def test_every_input_has_a_name_of_its_own():
    names = [each.name for each in INPUTS]
    assert len(names) > 80 and len({*names}) == len(names) and all(name and "\n" not in name for name in names)
