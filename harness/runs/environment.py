"""Where a run happened: hardware, versions and code, and a fingerprint of what absolute times depend on."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "pandas", "pyarrow", "clean-fid", "torchvision", "safetensors")
"""Versions that are recorded with every run."""

ROOT = Path(__file__).parents[1]
MEASURED = ("flows", "decoders")
"""Sub-packages whose sources determine what a decode computes and what it costs."""
USED = ("harness.metrics", "harness.fitting", "harness.measure.probes")
"""Packages whose sources determine what a probe computes, where it imports them."""


def environment(device: str) -> dict[str, Any]:
    """A description of this process's surroundings as plain values; no host or user name.

    Returns python, platform, cpu, cores, logical_cores, memory_bytes, threads, gpu, gpu_memory_bytes, driver (CUDA
    runtime), packages, git (commit and whether the tree had changes, or None), variables that set threads, and
    `fingerprint`: two runs with the same one may compare absolute times.

    Args:
        device: the kind that is measured, ``"cpu"`` or ``"cuda"``.
    """
    import psutil
    import torch

    properties = torch.cuda.get_device_properties(0) if device == "cuda" else None
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": _usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device,
        "threads": torch.get_num_threads(),
        "gpu": properties.name if properties else None,
        "gpu_memory_bytes": properties.total_memory if properties else None,
        "cuda": torch.version.cuda if properties else None,
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        "git": git_state(ROOT),
    }
    return facts | {"fingerprint": fingerprint(facts)}


def fingerprint(facts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of what absolute times depend on: processor, cores, threads, device, torch."""
    return hashlib.sha256(json.dumps(decisive(facts), sort_keys=True).encode()).hexdigest()[:12]


def decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """Of a description, what absolute times depend on; None for what it does not tell."""
    names = ("machine", "cpu", "logical_cores", "threads", "device", "gpu", "cuda")
    return {name: facts.get(name) for name in names} | {"torch": facts.get("packages", {}).get("torch")}


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that `folder` is checked out from and whether it was changed since; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--", "."))}


@cache
def code_version() -> str:
    """SHA-256 of the sources of flows and decoders: part of every cell's identity."""
    return digest_sources(sorted(path for name in MEASURED for path in (ROOT / name).rglob("*.py")), ROOT)


def source_version(cls: type) -> str:
    """The code version of what a class computes: of flows and decoders, of its own file where that is none of these,
    and of what the file uses of this package.
    """
    source = inspect.getsourcefile(cls)
    if source is None or any(Path(source).resolve().is_relative_to((ROOT / name).resolve()) for name in MEASURED):
        return code_version()
    digests = [digest_sources([path], path.parent) for path in sorted(_used(Path(source).resolve()))]
    return hashlib.sha256("".join([code_version(), *digests]).encode()).hexdigest()


def _used(source: Path) -> set[Path]:
    """A file, and the files of `USED` that it imports, directly or not."""
    found, waiting = set[Path](), [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(USED):
                    base = ROOT.joinpath(*node.module.split(".")[1:]).resolve()
                    waiting += [one for one in (base.with_suffix(".py"), base / "__init__.py") if one.is_file()]
    return found


def digest_sources(paths: list[Path], root: Path) -> str:
    """SHA-256 of some files and their names below `root`."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cpu_model() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
