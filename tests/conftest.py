"""What holds for every test."""

import signal

# A script's shell starts what runs in the background (`pytest &`) deaf to Ctrl-C, and searches would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
