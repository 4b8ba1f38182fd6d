"""What holds for every test."""

import os
import signal

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported, here and in processes that tests start
import pytest
import torch

# A script's shell starts what runs in the background (`pytest &`) deaf to Ctrl-C, and searches would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and their files are written, but they are empty: drawing takes longer than all else in a search.

    Searches in processes of their own draw them, as tests of pictures do.
    """
    import plots

    def rendered(draw):
        draw()
        return b"", set()

    monkeypatch.setattr(plots, "rendered", rendered)
