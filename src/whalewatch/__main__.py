"""The entry point of ``python -m whalewatch`` and of the console script."""

from __future__ import annotations

import sys

from whalewatch.cli.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
