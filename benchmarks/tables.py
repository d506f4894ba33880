"""Tables: appending rows as the runner does, and reading a run as the analysis does."""

import tempfile
from pathlib import Path

from .common import Timed


def rows(count):
    """Rows of the widest table that is written most often."""
    facts = {"cell_id": "cell", "cell_key": "key", "group_id": "group", "decoder": "sejd", "label": "sejd", "tau": 0.5,
             "options": "{}", "batch_size": 16, "status": "ok", "session": "session"}  # fmt: skip
    return [facts | {"round": i, "wall_s": 0.1, "encode_s": 0.01, "forward_ratio": 10.0} for i in range(count)]


class Stored(Timed):
    """What is done to a fresh run folder."""

    def setup(self, *params):
        from harness.runs.store import RunStore

        self.folder = tempfile.TemporaryDirectory()
        self.store = RunStore.create(Path(self.folder.name) / "run", {})
        super().setup(*params)

    def teardown(self, *params):
        self.store.close()
        self.folder.cleanup()


class Append(Stored):
    """One part of a table, written, synced and renamed."""

    param_names = ["rows"]
    params = ([1, 1000],)

    def prepare(self, count):
        new = rows(count)
        return lambda: self.store.append("timings", new)


class Read(Stored):
    """A table of many parts, as a killed run leaves it."""

    param_names = ["parts"]
    params = ([1, 100],)

    def prepare(self, parts):
        for part in range(parts):
            self.store.append("timings", [row | {"round": 100 * part + row["round"]} for row in rows(20)])
        return lambda: self.store.read("timings")
