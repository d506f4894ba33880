"""The figures, one file a family, in one style."""

import contextlib
import os
import sys

if "matplotlib" not in sys.modules and "MPLBACKEND" in os.environ:  # with a name it does not know it is not imported
    named = os.environ.pop("MPLBACKEND")
    import matplotlib

    os.environ["MPLBACKEND"] = named
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = named
