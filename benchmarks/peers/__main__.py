"""`python benchmarks/peers`: Engine and its peers under the same load. `--help` explains."""

import sys
from importlib import import_module
from pathlib import Path

# A folder that is run is no package; it becomes one, so that its files can import each other by relative names.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
import_module("peers.cli").main()
