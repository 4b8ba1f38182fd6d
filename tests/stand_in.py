"""The program with a fast function in the place of a child's training: `python tests/stand_in.py FLAGS`."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import train

SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.01"))
LARGEST_FILE = int(os.environ.get("STAND_IN_LARGEST_FILE", "0"))  # bytes; as if the disk were full then


def attempt(run, workers, architecture, seed):
    if LARGEST_FILE:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    time.sleep(SECONDS * (1 + seed % 3))  # children end out of order
    return {"val_accuracy": 0.9 + seed % 997 / 10_000, "parameters": 5, "seconds": SECONDS}


def deadly_child(data, architecture, recipe, seed, device):
    """Runs in a worker process, and kills it for every third architecture."""
    if seed % 3 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"val_accuracy": 0.9 + seed % 997 / 10_000, "parameters": 5, "seconds": SECONDS}


if __name__ == "__main__":
    if "STAND_IN_DEADLY" in os.environ:
        train.search_child = deadly_child
    else:
        train.attempt = attempt
    train.main()
