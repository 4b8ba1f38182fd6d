"""How good is a search? Replays searches on a table that has the accuracies of a whole space, or on a generated space.

    python -m benchmarks.search_quality                                       on results/mnist_space.csv
    python -m benchmarks.search_quality --table nasbench_macro.csv.gz --name nasbench_macro
    python -m benchmarks.search_quality --space pairs                         30 decisions of four choices; or singles
    python -m benchmarks.search_quality --method my_module:MyClass            your own method

docs/benchmark.md has the format of a table. In each repetition every network has its own order of those trainings that
a search may see, the same for all methods: the first is the reward, the second a finalist's. The true accuracy of a
pick (`truth` in the files) is the mean of its fresh trainings, which no search sees, or of those that are left. Every
method pays for distinct networks only.

The controller returns the first of `PolicyGradient.ranking`. A baseline method returns the network with the highest
reward, or of finalists the one with the highest mean of two. "By reward alone" applies the rule of the baseline methods to
the controller. "By both" applies the controller's rule to the baseline methods that have as many evaluations pending on a
table: a controller of its own learns from the method's children in their order, with as many updates as the controller
makes. With finalists some of the budget goes into training a tenth once more, as train.py does. A policy that chooses has
learned from all full batches within its budget.

Intervals and p values are from a bootstrap of searches, paired by repetition, and of the trainings that give a network's
true accuracy. Where that is one unseen training its luck is left out; so is the luck of the rewards, which all searches
share.

Searches are kept in results/search_quality_<name>.jsonl.gz, whatever else is asked for: only what is missing is run (or
named with --again), and results/search_quality_<name>.json is made from all. TPE and GP are Optuna's: `pip install optuna
scipy`.
"""

import argparse
import gzip
import itertools
import json
import math
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import date
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.baselines import Evolution, LocalSearch, Optuna, OwnMethod, RandomSearch
from benchmarks.common import CHILDREN_PER_UPDATE, RESULTS, input_errors, recommended_lag
from benchmarks.spaces import BEST, Actions, Generated, Landscape, Observed, Table, read_table
from benchmarks.summary import KINDS, Summary, curve_points, spend
from controller import Controller
from policy_gradient import PAPER_SETTINGS, PolicyGradient
from utils import InputError, environment, usable_cores, write_atomically, write_json

BUDGETS = (25, 50, 100, 200)  # children, the default of --budgets
PENDING = 10  # evaluations, as many as the controller has
SAMPLES, KEPT = 1000, 100  # of the policy, at each budget

# --- searches -----------------------------------------------------------------------------------------------------


def by_reward(rewards: dict[Actions, Sequence[float]]) -> list[Actions]:
    """The networks by their mean reward, of equal ones the earlier child first."""
    return sorted(rewards, key=lambda actions: sum(rewards[actions]) / len(rewards[actions]), reverse=True)


class Picks:
    """The networks that one rule returns at each budget: numbers of children, by kind; chosen as the search goes on."""

    def __init__(
        self, observed: Observed | Landscape, budgets: Sequence[int], ranking: Callable, end: str = ""
    ) -> None:
        self.observed, self.ranking = observed, ranking
        wanted = [(n, f"found{end}", 0) for n in budgets]
        wanted += [(n, "curve", 0) for n in curve_points(budgets)] if not end else []
        if observed.space.has_finalists:
            wanted += [(children, f"finals{end}", finalists) for children, finalists in map(spend, budgets)]
        self.wanted = deque(sorted(wanted))
        self.by_kind: dict[str, list] = {kind: [] for _, kind, _ in wanted}
        self.seconds: list[float] = []  # of children and finalists

    def before(self, learned: float) -> None:
        """Choose at the budgets of fewer children than the policy will have learned from."""
        while self.wanted and self.wanted[0][0] < learned:
            children, kind, finalists = self.wanted.popleft()
            order = list(self.observed.seen)[:children]
            ranked = self.ranking({actions: [self.observed.seen[actions]] for actions in order})
            if chosen := set(ranked[:finalists]):
                trained = {a: [self.observed.seen[a], self.observed.again(a)] for a in order if a in chosen}
                ranked = self.ranking(trained)
            self.by_kind[kind].append(order.index(ranked[0]))
            if kind == "finals" and self.observed.space.seconds is not None:
                self.seconds.append(self.observed.seconds([*order, *chosen]))


def make_policy(observed: Observed | Landscape, seed: int, settings: dict) -> tuple[PolicyGradient, Callable, Callable]:
    """A controller and its update; also the reward of an accuracy, and the ranking of networks by accuracies."""
    settings = dict(settings)
    exponent = settings.pop("reward_exponent", 1)
    network = {key: settings.pop(key) for key in ("hidden_size", "num_layers") if key in settings}
    torch.manual_seed(seed)
    controller = Controller(observed.space.num_choices, observed.space.names, **network)
    search = PolicyGradient(controller, seed=seed, **settings)

    def ranking(accuracies: dict[Actions, Sequence[float]]) -> list[Actions]:
        order = search.ranking if search.reward_of else by_reward
        return order({actions: [value**exponent for value in some] for actions, some in accuracies.items()})

    return search, lambda actions: observed(actions) ** exponent, ranking


def policy_gradient(observed: Observed | Landscape, budgets: Sequence[int], seed: int, **settings) -> dict:
    """The program's own controller and update; also samples of its policy at each budget."""
    search, reward, ranking = make_policy(observed, seed, settings)
    picks = Picks(observed, budgets, ranking)
    budget = max(budgets)
    result = {"samples": [], "modes": [], "entropy": []}
    pending = deque()  # batches and their rewards, which the search is told later
    while pending or not search.done(budget):
        while len(pending) <= search.update_lag and not search.done(budget):
            batch = search.ask(budget)
            pending.append((batch, [reward(actions) for actions in batch]))
        oldest, _ = pending[0]
        learned = len(search.reward_of) + len(oldest)
        picks.before(learned)
        prefers(search, observed, sum(n < learned for n in budgets), result)
        search.tell(*pending.popleft())
    picks.before(math.inf)
    prefers(search, observed, len(budgets), result)
    return result | {"picks": picks.by_kind, "finals_seconds": picks.seconds}


@torch.no_grad()
def prefers(search: PolicyGradient, observed: Observed | Landscape, wanted: int, result: dict) -> None:
    """Samples of the policy, the most frequent one, and its entropy, at so many budgets altogether."""
    while len(result["modes"]) < wanted:
        drawn = search.controller(None, SAMPLES, torch.Generator().manual_seed(0))
        samples = list(map(tuple, drawn.actions.tolist()))
        result["samples"].append([observed.entry(actions) for actions in samples[:KEPT]])
        result["modes"].append(observed.entry(max(dict.fromkeys(samples), key=samples.count)))
        result["entropy"].append(round(drawn.entropy.sum(1).mean().item(), 4))


def run_baseline(
    observed: Observed | Landscape, budgets: Sequence[int], seed: int, method: type, pending: int = 1, **settings
) -> dict:
    """Search until the budget is met, with this number of evaluations pending, told in their order."""
    searcher = method(observed.space.num_choices, seed, **settings)
    budget = max(budgets)
    asked = 0
    waiting = deque()  # networks that the searcher has asked for and not been told of
    while len(observed.seen) < budget and asked < 20 * budget:  # some ask again and again for what they know
        while len(waiting) < pending and len(observed.seen) < budget:
            network = searcher.ask()
            observed(network)  # it is paid for now
            waiting.append(network)
            asked += 1
        network = waiting.popleft()
        searcher.tell(network, observed(network))
    comparable = pending == PENDING and isinstance(observed, Observed)
    return smoothed(observed, budgets, seed) if comparable else {"picks": {}}


def smoothed(observed: Observed | Landscape, budgets: Sequence[int], seed: int) -> dict:
    """The networks that a controller chooses which has learned from a baseline method's children, in their order."""
    search, reward, ranking = make_policy(observed, seed, {})
    picks = Picks(observed, budgets, ranking, "_smoothed")
    children = list(observed.seen)
    for start in range(0, len(children), search.children_per_update):
        batch = children[start : start + search.children_per_update]
        picks.before(start + len(batch))
        search.reward_of.update({actions: reward(actions) for actions in batch})
        search.update(list(search.reward_of)[-search.replay :])
    picks.before(math.inf)
    return {"picks": picks.by_kind}


TPE = {"method": Optuna, "sampler": "TPE", "multivariate": True}
PAPER_CONTROLLER = PAPER_SETTINGS | {"num_layers": 2, "hidden_size": 35, "reward_exponent": 3}
METHODS: dict[str, tuple[Callable, dict]] = {  # by the names in the files of results/, where pending is "under way"
    "controller": (policy_gradient, {}),
    "random search": (run_baseline, {"method": RandomSearch, "pending": PENDING}),
    f"regularised evolution, {PENDING} under way": (run_baseline, {"method": Evolution, "pending": PENDING}),
    f"local search, {PENDING} under way": (run_baseline, {"method": LocalSearch, "pending": PENDING}),
    f"TPE, {PENDING} under way": (run_baseline, TPE | {"constant_liar": True, "pending": PENDING}),
    "sequential controller": (policy_gradient, {"children_per_update": 1, "update_lag": 0}),  # like the next ones
    "regularised evolution, 10 and 3": (run_baseline, {"method": Evolution, "sample": 3}),
    "regularised evolution, 10 and 5": (run_baseline, {"method": Evolution}),
    "local search": (run_baseline, {"method": LocalSearch}),
    "TPE": (run_baseline, TPE),
    "paper's controller": (policy_gradient, PAPER_CONTROLLER),
}
COMPARED = [name for name in METHODS if name != "sequential controller"]  # by default
LARGE = [name for name in METHODS if name not in ("regularised evolution, 10 and 3", "local search")]  # by default
METHODS["Gaussian process"] = run_baseline, {"method": Optuna, "sampler": "GP"}  # slow
METHODS |= {f"lag {lag}": (policy_gradient, {"update_lag": lag}) for lag in (0, 1, 2, 4, 9)}
METHODS |= {  # with lags that keep so many workers busy
    f"{n} workers": (policy_gradient, {"children_per_update": CHILDREN_PER_UPDATE, "update_lag": recommended_lag(n)})
    for n in (1, 8, 64, 800)
}
CHANGES = {  # what differs from the paper's settings
    "network and learning rate": ("num_layers", "hidden_size", "lr"),
    "ranks": ("reward_scale",),
    "entropy bonus": ("entropy_weight",),
    "replay": ("replay",),  # which leaves out what is known
    "batches of 2": ("children_per_update",),
}
for change, settings in CHANGES.items():
    METHODS[f"{change} alone"] = policy_gradient, {k: v for k, v in PAPER_CONTROLLER.items() if k not in settings}
for change, settings in CHANGES.items():
    METHODS[f"without {change}"] = policy_gradient, {key: PAPER_CONTROLLER[key] for key in settings}

_space: Table | Generated | None = None  # in a process of the pool


def start(space: Table | Generated, own_methods: dict[str, tuple[Callable, dict]]) -> None:
    global _space
    _space = space
    METHODS.update(own_methods)
    torch.set_num_threads(1)


def repetition(method: str, seed: int, budgets: Sequence[int]) -> dict:
    """One search, as it is kept."""
    observed, (search, settings) = _space.observed(seed), METHODS[method]
    result = search(observed, budgets, seed, **settings)
    reward_alone = Picks(observed, budgets, by_reward, "_reward" if "samples" in result else "")
    reward_alone.before(math.inf)
    result["picks"] |= reward_alone.by_kind
    result.setdefault("finals_seconds", reward_alone.seconds)
    result["children"] = [observed.entry(actions) for actions in observed.seen]
    if getattr(observed, "maximum", None):
        result["maximum"] = round(observed.maximum, 4)
    return {"method": method, "repetition": seed} | result


# --- what was run -------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[str]:
    """The whole lines of a file; an interrupted run may have left a part of one."""
    with gzip.open(path, "rt") as file, suppress(EOFError):
        yield from (line for line in file if line.endswith("\n"))


class Kept:
    """The searches in a file, a line each; the line before those of one run says what it was."""

    def __init__(self, path: Path, same: dict) -> None:
        self.path, self.lines = path, list(map(json.loads, read_lines(path))) if path.exists() else []
        for header in self.lines[:1]:
            if changed := [name for name, value in same.items() if header[name] != value]:
                raise InputError(
                    f"{path} holds searches of another {' and '.join(changed)}: move it away, or choose another --name"
                )

    @property
    def runs(self) -> dict[str, dict[int, dict]]:
        """Each method's searches by repetition, the methods in their order here."""
        runs = {method: {} for method in METHODS}
        for line in self.lines:
            if line.get("method") in METHODS:  # and no header
                runs[line["method"]][line["repetition"]] = line
        return {method: dict(sorted(some.items())) for method, some in runs.items() if some}

    def extend(self, header: dict, jobs: Iterator[dict]) -> None:
        """Write all that is kept anew, then each new search when it has ended."""
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self.lines)
        write_atomically(self.path, gzip.compress(text.encode(), mtime=0))
        with gzip.open(self.path, "at") as file:
            first = next(jobs)  # before the header, which a run that fails at once doesn't leave
            for line in itertools.chain([header, first], jobs):
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
                file.flush()
                self.lines.append(line)


# --- the program --------------------------------------------------------------------------------------------------


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", type=Path, default=RESULTS / "mnist_space.csv", help="CSV file, see above")
    add(
        "--space",
        choices=("pairs", "singles"),
        help="no table: a sum over pairs of decisions, or of each decision alone",
    )
    add("--name", help="of the files in results/ (default: the table's, of MNIST's mnist, or the space's)")
    add("--repetitions", type=int, help="searches of each method (default: 200, of a space 100)")
    add("--methods", nargs="*", choices=list(METHODS), metavar="METHOD", help=f"of {', '.join(map(repr, METHODS))}")
    add(
        "--method",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="your own method, a class with ask and tell (docs/benchmark.md); without --methods only it is run",
    )
    add("--pending", type=int, default=PENDING, help="evaluations that --method has pending (default: %(default)s)")
    add("--again", action="store_true", help="run the methods anew, although their searches are kept")
    add("--budgets", nargs="*", type=int, help="children (default: 25 50 100 200, of a space 50 100 200)")
    add("--processes", type=int, default=usable_cores(), help="searches at once")
    return parser.parse_args()


@input_errors()
def main() -> None:
    args = read_flags()
    space = Generated(args.space) if args.space else read_table(args.table)
    name = args.name or args.space or args.table.name.split(".")[0].removesuffix("_space")
    own_methods = make_own_methods(args.method, args.pending, space.num_choices)
    METHODS.update(own_methods)
    defaults = LARGE if args.space else COMPARED
    methods = [*(args.methods or ([] if own_methods else defaults)), *own_methods]
    budgets = sorted(set(args.budgets or (BUDGETS[1:] if args.space else BUDGETS)))
    for note in space.notes():
        print(f"note: {note}")
    if budgets[0] < 1 or budgets[-1] > (size := math.prod(space.num_choices)):
        raise InputError(f"{args.table} has {size:,} networks: choose --budgets from 1 to that")
    if any(METHODS[method][1].get("method") is Optuna for method in methods) and not find_spec("optuna"):
        raise InputError("TPE and GP need Optuna: pip install optuna scipy, or leave them out with --methods")
    started = time.perf_counter()
    command = " ".join(shlex.quote(word.replace(str(args.table), args.table.name)) for word in sys.argv[1:])
    made = {"command": f"python -m benchmarks.search_quality {command}".strip(), "date": str(date.today())}
    header = {"table": args.space or args.table.name, "digest": space.digest, "budgets": budgets} | made
    kept = Kept(RESULTS / f"search_quality_{name}.jsonl.gz", {"digest": space.digest, "budgets": budgets})
    if args.again:
        kept.lines = [line for line in kept.lines if line.get("method") not in methods]
    seeds = range(args.repetitions or (100 if args.space else 200))
    todo = [(method, seed) for method in methods for seed in seeds if seed not in kept.runs.get(method, {})]
    for method in own_methods:
        if reused := len(kept.runs.get(method, {})):
            print(
                f"note: {reused} searches of {method} are from {kept.path.name}: if its class has changed, add --again"
            )
    if todo:
        with ProcessPoolExecutor(args.processes, get_context("spawn"), start, (space, own_methods)) as pool:
            jobs = pool.map(partial(repetition, budgets=budgets), *zip(*todo, strict=True))
            kept.extend(header | environment(), iter(tqdm(jobs, total=len(todo), unit="search")))
    summary = Summary(space, budgets, kept.runs)
    made["commands"] = list(dict.fromkeys(line["command"] for line in kept.lines if "command" in line))
    result = {"table": header["table"], "truth_is": space.source_of_true_accuracy, "grid": list(curve_points(budgets))}
    if isinstance(space, Table):
        ranked = np.sort(space.true_accuracy)[::-1]
        of_space = {"best": ranked[0], "mean": ranked.mean(), f"best_{BEST}": space.mean_and_best[1]}
        of_space |= {f"top{share}": ranked[math.ceil(len(ranked) * share / 100) - 1] for share in (1, 5)}
        result |= {
            "architectures": len(ranked),
            "trainings": space.trainings.shape[1],
            "with_fresh": int(space.has_fresh.sum()),
        }
        result |= {"truth": {name: float(value) for name, value in of_space.items()}}
    result |= {"methods": {method: summary.told_of(method) for method in summary.runs}} | made
    file = RESULTS / f"search_quality_{name}.json"
    write_json(file, result | {"seconds": time.perf_counter() - started} | environment())
    print_table(result, 1 if args.space else 100)
    for method in methods:
        if (fewest := result["methods"][method]["fewest_children"]) < budgets[-1]:
            print(f"note: {method} asked for {fewest} different networks only in one of its searches")
    print(f"true accuracy: {space.source_of_true_accuracy}; kept in {file} and {kept.path.name}")


def make_own_methods(names: list[str], pending: int, num_choices: tuple[int, ...]) -> dict[str, tuple[Callable, dict]]:
    """Entries of METHODS for these classes, each of them tried once; InputError for what is wrong with one."""
    if pending < 1:
        raise InputError(f"--pending must be at least 1, not {pending}")
    own_methods = {}
    for name in names:
        trial = OwnMethod(num_choices, 0, name)
        trial.tell(trial.ask(), 0.5)
        ending = f", {pending} pending" if pending > 1 else ""
        own_methods[name + ending] = run_baseline, {"method": OwnMethod, "name": name, "pending": pending}
    return own_methods


def print_table(result: dict, scale: float) -> None:
    """Print the networks that the methods return."""
    print(
        "controller ahead: its lead over this method; p: two-sided, paired; rank: among all networks, by true accuracy"
    )
    titles = f"{'method':<36} {'budget':>6} {'':<28} {'truth':>16} {'mean of all':>12} {'rank':>7}"
    print(f"{titles} {'controller ahead':>18} {'p':>7}")
    for method, kept in result["methods"].items():
        for budget, kinds in kept["budgets"].items():
            for kind, row in kinds.items():
                ahead, p = "-", "-"
                if "p" in row:
                    ahead = f"{scale * row['controller_ahead']:+.3f} ± {scale * row['controller_ahead_ci']:.3f}"
                    p = f"{row['p']:.4f}"
                rank = f"{row['rank']:.1f}" if "rank" in row else "-"
                by_all = f"{scale * row['truth_all']:.3f}" if "truth_all" in row else "-"
                truth = f"{scale * row['truth']:.3f} ± {scale * row['truth_ci']:.3f}"
                line = f"{method:<36} {budget:>6} {KINDS[kind]:<28} {truth:>16} {by_all:>12} {rank:>7}"
                print(f"{line} {ahead:>18} {p:>7}")


if __name__ == "__main__":
    main()
