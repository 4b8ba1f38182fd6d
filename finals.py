"""Final trainings, those of an evaluation; not the finalists of a search.

A folder keeps those that have ended, so that an evaluation can go on.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import utils
from datasets import Data
from model import Recipe
from search_space import Architecture
from utils import InputError

EVERY_FILE = "final-*"  # the files of trainings that have ended


class Evaluation(NamedTuple):
    """What the flags of `--mode evaluate` describe."""

    args: argparse.Namespace
    architecture: Architecture
    suffix: str  # stands in the names of its files
    searched: dict  # settings of the search in the run folder, if it is one on this data set; otherwise empty
    data: Data
    recipe: Recipe
    device: str


class Job(NamedTuple):
    """A final training: of which network, how, with which seed, and whether its weights are needed afterwards."""

    network: Architecture | Callable
    recipe: Recipe
    seed: int
    keep_weights: bool = False

    @property
    def name(self) -> str:
        """What stands in the names of its files."""
        extra = getattr(self.network, "extra_filters", 0)
        return f"{self.seed}-{extra}_more_filters" if extra else str(self.seed)

    def description(self) -> dict:
        """All that tells it from the other trainings of an evaluation, as JSON holds it."""
        described = {"architecture": str(self.network), "seed": self.seed, "recipe": asdict(self.recipe)}
        return json.loads(json.dumps(described))


class Finals:
    """A folder with files for each training that has ended, and in settings.json what all of them depend on.

    Trainings with other settings are removed when the first new one has ended, if their evaluation was complete;
    otherwise InputError, with nothing touched.
    """

    def __init__(self, folder: Path, settings: dict) -> None:
        self.folder, self.settings_file = folder, folder / "settings.json"
        self.settings = json.loads(json.dumps(settings))
        self.complete, self.same_settings = False, False
        self.wall_before = 0.0  # seconds that earlier runs took for the trainings that this one found
        self.counted: set[str] = set()  # the names of trainings whose time is known
        self.latest = time.perf_counter()  # when the latest training ended
        if self.settings_file.exists():
            remedy = f"delete {folder}, only its trainings are lost"
            before = utils.read_json(self.settings_file, remedy, settings=dict, complete=bool)
            changed = utils.differences(self.settings, before["settings"])
            self.complete, self.same_settings = before["complete"], not changed
            if changed and not self.complete and any(folder.glob(EVERY_FILE)):
                stopped = f"{folder} keeps the trainings of an evaluation that was stopped, with other settings"
                raise InputError(f"{stopped} ({changed}): use the same flags to continue it, or delete {folder}")

    def find(self, name: str, **types: type) -> dict | None:
        """What was kept under a name with these settings, or None."""
        file = self.file(name)
        if not self.same_settings or not file.exists():
            return None
        return utils.read_json(file, "delete it, only this training is lost", **types)

    def keep(self, name: str, value: dict) -> None:
        """Keep a result under a name; from now on the evaluation is not complete."""
        self.begin()
        utils.write_atomically(self.file(name), json.dumps(value, allow_nan=False).encode())

    def file(self, name: str, suffix: str = "json") -> Path:
        return self.folder / f"final-{name}.{suffix}"

    def begin(self) -> None:
        """Before something is kept: remove what was made with other settings, and write these."""
        for unfinished in self.folder.glob(f".{EVERY_FILE}"):  # a killed run left it
            unfinished.unlink()
        if not self.same_settings:
            for file in self.folder.glob(EVERY_FILE):
                file.unlink()
        if self.complete or not self.same_settings:
            self.complete = False
            self.write_settings()
            self.same_settings = True  # not before: if they can't be written, nothing may be kept beside others

    def find_training(self, job: Job) -> dict | None:
        """The result of a training that has ended before, or None."""
        types: dict[str, type] = {"top1": float, "top5": float, "wall": float, "environment": dict}
        if isinstance(job.network, Architecture):
            types["confusions"] = list
        kept = self.find(job.name, **types)
        if kept is None or any(kept.get(key) != value for key, value in job.description().items()):
            return None
        if job.keep_weights:
            file = self.file(job.name, "pt")
            kept["saved"] = file.read_bytes() if file.exists() else b""
            if hashlib.sha256(kept["saved"]).hexdigest() != kept.get("weights"):
                return None
        if job.name not in self.counted:  # else this run has made it, or found it before
            self.wall_before += kept["wall"]
            self.counted.add(job.name)
        return kept

    def keep_training(self, job: Job, final: dict) -> None:
        """Keep the result of a training; the weights first, because the other file says that it is whole."""
        now = time.perf_counter()
        result = job.description() | {key: value for key, value in final.items() if key != "saved"}
        result["wall"], self.latest = now - self.latest, now  # since the training that ended before it
        if "saved" in final:
            result["weights"] = hashlib.sha256(final["saved"]).hexdigest()
            self.begin()
            utils.write_atomically(self.file(job.name, "pt"), final["saved"])
        self.keep(job.name, result)
        self.counted.add(job.name)

    def seconds_since(self, started: float) -> float:
        """What all runs have taken for these trainings, this one from `started` on."""
        return self.wall_before + time.perf_counter() - started

    def finish(self) -> None:
        """Other settings may replace these trainings from now on: the files of the evaluation have all results."""
        self.complete = True
        self.write_settings()

    def write_settings(self) -> None:
        utils.write_json(self.settings_file, {"settings": self.settings, "complete": self.complete})


@contextmanager
def open_finals(folder: Path, settings: dict) -> Iterator[Finals]:
    """Lock the folder of an evaluation's trainings, and open it; InputError if another evaluation has it."""
    with utils.lock(folder, "evaluation"):
        yield Finals(folder, settings)


def statistics_of(name: str, finals: Sequence[dict]) -> dict:
    """An accuracy of several trainings, its mean and its standard deviation."""
    values = [final[name] for final in finals]
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: values, f"{name}_mean": statistics.fmean(values), f"{name}_std": std}
