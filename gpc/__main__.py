"""`python -m gpc` is the command `gpc`."""

import sys

from gpc.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
