"""The executor that uses a Ray cluster: a job holds a whole GPU or, on the CPU, a whole node. See CLUSTERS.md."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from harness.errors import HarnessError
from harness.measure.units import Unit
from harness.measure.workers.executor import Worker, WorkerLost
from harness.measure.workers.job import Job, Outcome
from harness.measure.workers.ray_worker import RayWorker

OBJECT_STORE_BYTES = 200_000_000
"""Of a Ray that is started here: rows and features travel through it, nothing large stays."""
REACHED_S = 10.0
"""Seconds that a cluster's head has to answer."""


class RayCluster:
    """Jobs as Ray actors, never restarted by Ray: what is left of a lost job is handed out again by the driver.

    Raises HarnessError: Ray is not installed, or there is no cluster at that address.

    Args:
        address: of a cluster, ``"ray://host:port"`` through Ray's client or ``"host:port"`` of its head; by default
            $RAY_ADDRESS, else the cluster that runs on this machine, else a new one of this machine alone.
    """

    def __init__(self, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        try:
            import ray
        except ImportError as error:
            raise HarnessError(
                "--on ray needs Ray, which is not installed: pip install 'nf-decoding-harness[ray]'"
            ) from error
        self._ray: Any = ray
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._losses: Counter[str] = Counter()
        if address:
            _require_listening(address)
        quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        try:
            ray.init(address=address or "auto", **quiet)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
            if address or os.environ.get("RAY_ADDRESS"):
                where = address or os.environ["RAY_ADDRESS"]
                raise HarnessError(f"there is no Ray cluster at '{where}': {error}") from error
            ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)

    def prepare(self, device: str) -> None:
        """See `Executor.prepare`; the cluster is there."""

    def slots(self, device: str, exclusive: bool) -> int:
        if device == "cuda":
            return max(1, sum(int(node["Resources"].get("GPU", 0)) for node in self._nodes()))
        return max(1, len(self._nodes()))

    def open(self, job: Job) -> Worker:
        if job.device == "cuda":
            return self._start(job, None, num_gpus=1, num_cpus=1)
        node = self._take_node()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return self._start(job, node["NodeID"], num_cpus=node["Resources"]["CPU"], scheduling_strategy=here)

    def close(self) -> None:
        self._ray.shutdown()

    def _start(self, job: Job, node: str | None, **options: Any) -> Worker:
        actor = self._ray.remote(RayWorker).options(max_restarts=0, max_task_retries=0, **options)
        worker = _RayWorker(self, actor.remote(pickle.dumps(job)), node)
        try:
            worker.wait()
        except BaseException:
            worker.close(now=True)
            raise
        return worker

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]

    def _take_node(self) -> dict[str, Any]:
        """A node that no job of ours holds; blocks until there is one. Those that lost a worker come last."""
        with self._changed:
            while True:
                nodes = self._nodes()
                if not nodes:
                    raise HarnessError(
                        "no node of the Ray cluster is left; what was measured is stored, --resume goes on"
                    )
                free = [node for node in nodes if node["NodeID"] not in self._busy]
                if free:
                    chosen = min(free, key=lambda node: self._losses[node["NodeID"]])
                    self._busy.add(chosen["NodeID"])
                    return chosen
                self._changed.wait(timeout=10)  # a node may also have joined or gone

    def give_back(self, node: str | None, lost: bool) -> None:
        with self._changed:
            if node is not None:
                self._busy.discard(node)
                self._losses[node] += lost
            self._changed.notify_all()


class _RayWorker:
    def __init__(self, cluster: RayCluster, actor: Any, node: str | None) -> None:
        self._cluster, self._ray, self._actor, self._node = cluster, cluster._ray, actor, node
        self._lost = self._closed = False

    def wait(self) -> None:
        self._get(self._actor.ready.remote(), begun=False)

    def measure(self, unit: Unit, inputs: Sequence[bytes]) -> Outcome:
        ok, value = self._get(self._actor.measure.remote(pickle.dumps(unit), list(inputs)), begun=True)
        if not ok:
            kind, sentence = value
            raise HarnessError(sentence if kind.endswith("Error") and " " in sentence else f"{kind}: {sentence}")
        return value

    def close(self, now: bool) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._ray.kill(self._actor)
            finally:
                self._cluster.give_back(self._node, self._lost)

    def _get(self, reference: Any, begun: bool) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._lost = True
            reason = str(error).strip().splitlines()[0].rstrip(".:")
            raise WorkerLost(f"a worker of the cluster was lost ({type(error).__name__}: {reason})", begun) from error


def _require_listening(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S).close()
        except (OSError, OverflowError) as error:
            raise HarnessError(f"there is no Ray cluster at '{address}': {error}") from error
