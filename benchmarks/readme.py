"""Draw the figures of README and docs/, and fill their tables, from the files in results/.

python -m benchmarks.readme              from results/
python -m benchmarks.readme --collect    first take from runs/ what results/ has of the same name

On a page a table stands between two comments, and is replaced as a whole:

    <!-- table: depths -->
    <!-- end -->

The name is a key of TABLES. Its function takes no argument, and returns the table in Markdown from the files in
results/. It stands in the module of the benchmark that wrote them, in that module's TABLES; so a new table is a new
function there, and two comments on a page. A table that no page has may be deleted. tests/test_pages.py fails if a page
has another table than this program would write.
"""

import argparse
import re
import shutil

from benchmarks import (
    cifar10,
    cifar10_final,
    cifar10_rewards,
    depths,
    figures,
    final_training,
    gpu,
    live_tables,
    reward_fidelity,
    search_tables,
)
from benchmarks.common import RESULTS
from utils import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLES = {}
for module in (
    cifar10,
    cifar10_final,
    cifar10_rewards,
    depths,
    final_training,
    gpu,
    live_tables,
    reward_fidelity,
    search_tables,
):
    TABLES |= module.TABLES


def render(text: str) -> str:
    """A page's text with its tables filled."""
    block = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
    return block.sub(lambda m: f"<!-- table: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="take files of the searches in runs/ first")
    if parser.parse_args().collect:
        for file in RESULTS.glob("*/*"):
            if (newer := ROOT / "runs" / file.relative_to(RESULTS)).exists():
                shutil.copy(newer, file)
    figures.main()
    search_tables.write_all_numbers()
    for page in PAGES:
        page.write_text(render(page.read_text()))
