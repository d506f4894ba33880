"""From ``--on`` to an executor."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.measure.workers.executor import Executor
from harness.measure.workers.local import Local


def executor(on: str = "local", workers: int = 1) -> Executor:
    """The executor that the command line names. Raises HarnessError: another name, or a cluster that cannot be reached.

    Args:
        on: ``"local"``, ``"ray"``, ``"ray://host:port"`` or ``"ray:ADDRESS"``.
        workers: CPU jobs at a time on this machine, of those that are not timed.
    """
    if on == "local":
        return Local(workers)
    kind, colon, address = on.partition(":")
    if kind != "ray" or (colon and not address.strip("/")):
        raise HarnessError(f"--on takes local, ray, ray://host:port or ray:ADDRESS, not '{on}'")
    from harness.measure.workers.ray_cluster import RayCluster

    return RayCluster(on if address.startswith("//") else address or None)
