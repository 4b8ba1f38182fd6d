"""What holds for every test."""

import os
import signal

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported, here and in processes that tests start
import torch

# A script's shell starts what runs in the background (`pytest &`) deaf to Ctrl-C, and searches would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
