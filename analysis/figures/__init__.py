"""The figures, one file a family, in one style."""

import os

try:
    import matplotlib  # noqa: F401 - refuses a backend that is not installed, such as the one a notebook's shell names
except ValueError:
    os.environ["MPLBACKEND"] = "agg"
