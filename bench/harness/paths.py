"""Where things are."""

import os
import pathlib

BENCH = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = BENCH.parent
BUILD = REPOSITORY / "target" / "bench"
TOOLS = BUILD / "tools"
RUN = BUILD / f"run-{os.getpid()}"
RESULTS = BENCH / "results"
