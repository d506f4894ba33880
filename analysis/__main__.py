"""``python -m analysis RUN...``: the same as ``harness report RUN...``."""

from __future__ import annotations

import sys

from harness.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["harness", "report"]
    main()
