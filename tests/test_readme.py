"""README says what results/ says."""

from pathlib import Path

from benchmarks.readme import render

README = Path(__file__).parent.parent / "README.md"


def test_numbers_equal_the_files_in_results():
    assert render(README.read_text()) == README.read_text()
