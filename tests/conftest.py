"""What every test may rely on, however the run was started."""

from __future__ import annotations

import signal

# a shell leaves SIGINT ignored in what it starts in the background, and children would inherit it
signal.signal(signal.SIGINT, signal.default_int_handler)
