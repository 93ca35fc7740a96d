"""`python -P -m engine`, the same as the command `engine`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
