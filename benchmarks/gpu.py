"""`make gpu`: everything that a GPU is needed for, in the minutes that somebody has one, in one command.

Every stage is a process of its own with its own time and memory, so that none takes the next one with it. The time is
shared by weight: a stage may take its share of what is left, and what it leaves goes to those after it. What a stage
made is packed while it runs, into one folder of few and small files, so that a killed run leaves what it had. Nothing
is installed, fetched or asked of git. This module itself needs the standard library alone.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = (
    "torch", "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "seaborn", "jinja2", "cleanfid", "torchvision", "PIL",
    "sklearn", "safetensors", "accelerate", "pydantic", "click", "rich", "filelock", "psutil", "platformdirs", "pytest",
    "hypothesis", "pynvml",
)  # fmt: skip
"""What this package and its tests import; without the last three, stages but the tests work."""
FILE_BYTES, ALL_BYTES = 15 * 2**20, 55 * 2**20
"""Of a file of the output folder, and of all of them."""
PACK_EVERY_S, LOOK_EVERY_S = 30.0, 1.0
"""A stage that runs is packed so often, and its memory looked at."""
ENDS_S = 5.0
"""That a stage which is asked to end may take."""
TAIL = 2500
"""Characters of a stage's output in the summary."""


@dataclass
class Stage:
    """A process, and what it leaves.

    Args:
        command: takes its seconds; None where there is nothing to do.
        weight: of its share of the time that is left.
        packed: folders or files that go into NAME.tar.gz.
        shown: whether the summary quotes the end of what it printed.
    """

    name: str
    command: Callable[[float], list[str] | None]
    weight: float
    packed: Sequence[Path] = ()
    shown: bool = False
    state: str = "not reached"
    seconds: float = 0.0
    output: str = ""


@dataclass
class Driver:
    """Runs stages one after the other and keeps the output folder.

    Args:
        out: the output folder.
        seconds: for all of it.
        memory: bytes that the processes of a stage may hold in RAM together; the rest of the machine is not theirs.
    """

    out: Path
    stages: list[Stage]
    seconds: float
    environment: dict[str, str]
    memory: float = float("inf")
    notes: str = ""
    began: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """The exit code: 0 where every stage was done, 1 where one was not."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.summarise()
        for place, stage in enumerate(self.stages):
            left = self.seconds - (time.monotonic() - self.began)
            share = left * stage.weight / sum(later.weight for later in self.stages[place:])
            command = stage.command(share) if share > 1 else None
            if command is None:
                stage.state = "skipped, nothing to do" if share > 1 else "skipped, no time was left"
            else:
                print(f"== {stage.name}: {share:.0f} s at most", flush=True)
                self._stage(stage, command, share)
            self.pack(stage)
            self.summarise()
            print(f"== {stage.name}: {stage.state}, {stage.seconds:.1f} s", flush=True)
        return int(any(stage.state != "done" and not stage.state.startswith("skipped") for stage in self.stages))

    def _stage(self, stage: Stage, command: list[str], share: float) -> None:
        log, began = self.out / "log.txt", time.monotonic()
        packed = looked = began
        stage.state = "running"
        with log.open("ab") as file:
            file.write(f"\n==== {stage.name}\n".encode())
            file.flush()
            start = file.tell()
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                while (code := process.poll()) is None:
                    time.sleep(0.1)
                    now = time.monotonic()
                    if now - began > share:
                        stage.state = f"ended after its {share:.0f} s"
                        break
                    if now - looked > LOOK_EVERY_S:  # seldom, so that nothing is disturbed
                        looked = now
                        if _resident(process.pid) > self.memory:
                            stage.state = f"ended, over its {self.memory / 2**30:.1f} GiB of memory"
                            break
                    if now - packed > PACK_EVERY_S:
                        packed = now
                        self.pack(stage)
                else:
                    stage.state = "done" if code == 0 else f"failed, exit code {code}"
            finally:
                _end(process)
                stage.seconds = time.monotonic() - began
                with log.open("rb") as read:
                    read.seek(start)
                    stage.output = read.read().decode("utf-8", "replace")
        if log.stat().st_size > FILE_BYTES:
            log.write_bytes(log.read_bytes()[-FILE_BYTES // 2 :])

    def pack(self, stage: Stage) -> None:
        """NAME.tar.gz with what the stage made so far, smallest files first; what has no room is left out."""
        files = sorted(
            (path.stat().st_size, path, path.relative_to(folder.parent))
            for folder in stage.packed
            if folder.exists()
            for path in ([folder] if folder.is_file() else folder.rglob("*"))
            if path.is_file()
        )
        if not files:
            return
        target = self.out / f"{stage.name}.tar.gz"
        others = sum(path.stat().st_size for path in self.out.iterdir() if path != target)
        room, partial = min(FILE_BYTES, ALL_BYTES - others) - 2**16, target.with_suffix(".partial")
        with tarfile.open(partial, "w:gz") as archive:
            for size, path, name in files:
                room -= size  # as if nothing could be compressed
                if room < 0:
                    break
                with suppress(FileNotFoundError):
                    archive.add(path, name)
        partial.replace(target)

    def summarise(self) -> None:
        rows = [f"| {one.name} | {one.state} | {one.seconds:.1f} |" for one in self.stages]
        lines = ["# What `make gpu` reached", "", self.notes, "", "| stage | | seconds |", "|---|---|---|", *rows, ""]
        for stage in self.stages:
            if stage.output and (stage.shown or not stage.state.startswith("done")):
                lines += [f"## {stage.name}", "", "```", stage.output[-TAIL:].strip(), "```", ""]
        partial = self.out / "summary.partial"
        partial.write_text("\n".join(lines), encoding="utf-8")
        partial.replace(self.out / "summary.md")


def _tree(pid: int) -> list:
    with suppress(Exception):  # psutil is not there, or the process is not there any more
        import psutil

        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _resident(pid: int) -> float:
    total = 0
    for process in _tree(pid):
        with suppress(Exception):
            total += process.memory_info().rss
    return total


def _end(process: subprocess.Popen) -> None:
    """End a stage with all that it started."""
    others = _tree(process.pid)[1:]
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for other in others:
        with suppress(Exception):
            other.kill()
    process.wait()


def stages(given: argparse.Namespace, work: Path) -> list[Stage]:
    """What is run, in this order: each needs at most what those before it made, and does without where it can."""
    python, device = given.python, given.device
    steps = [python, "-m", "benchmarks.gpu_stages", "--device", device, *(["--tiny"] if given.tiny else [])]
    harness, batches = [python, "-m", "harness"], ("2", "4") if given.tiny else ("16", "256")
    trained = work / "train" / "release" / "cifar10-paper.safetensors"
    mine = work / "flow" / "cifar10-paper.safetensors"  # what is fitted to it is stored beside it
    mine.parent.mkdir()

    def checkpoint() -> str:
        for path in (given.checkpoint, trained):
            if path and path.is_file() and not mine.is_file():
                shutil.copyfile(path, mine)
        return str(mine) if mine.is_file() else "random:2-64-2-1@8" if given.tiny else "random:2-256-6-6@32"

    def train(seconds: float) -> list[str] | None:
        if given.tiny or (given.checkpoint and given.checkpoint.is_file()):
            return None
        steps = min(2242, max(310, int(8 * (seconds - 70))))  # as many as the time lets, at 2,000 images a second
        return [*harness, "train", "cifar10-paper", "--steps", str(steps), "--out", str(work / "train")]

    def tune(seconds: float) -> list[str]:
        sizes = [part for batch in batches for part in ("--batch", batch)]
        more = ["--samples", "16"] if given.tiny else []
        return [*harness, "tune", checkpoint(), *sizes, "--seconds", f"{0.7 * seconds:.0f}", "--device", device,
                "--out", str(work / "tune"), *more]  # fmt: skip

    def calibrate(seconds: float) -> list[str]:
        more = ["--samples", "16"] if given.tiny else []
        return [*harness, "calibrate", checkpoint(), "--device", device, "--seconds", f"{0.6 * seconds:.0f}", *more]

    def peers(seconds: float) -> list[str] | None:
        made = [checkpoint(), str(given.peers), str(work / "peers.json")]
        return [*steps, "peers", *made] if given.peers else None

    def of_runs(command: list[str]) -> list[str] | None:
        there = [str(run) for run in runs if run.is_dir()]
        return [*command, *there] if there else None

    marked = "gpu" if device == "cuda" else "not gpu"
    tests = [python, "-m", "pytest", "-vv", "--tb=short", "-p", "no:cacheprovider", "-m", marked]
    tests.append("tests/gpu/test_device.py")
    fits = [work / "flow", work / "cache" / "nf-decoding-harness" / "random"]
    runs = [work / "trained", work / "afhq"]
    everything = [
        Stage("environment", lambda s: [*steps, "environment"], 1, shown=True),
        Stage("tests", lambda s: tests, 4, shown=True),
        Stage("train", train, 5, [work / "train" / name for name in ("curve.csv", "release")]),
        Stage("calibrate", calibrate, 3),
        Stage("tune", tune, 4, [*fits, work / "tune"]),
        Stage("trained", lambda s: [*steps, "matrix", checkpoint(), str(runs[0])], 7, [runs[0]]),
        Stage("afhq", lambda s: [*steps, "matrix", "afhq", str(runs[1])], 4, [runs[1]]),
        Stage("peers", peers, 3, [work / "peers.json"], shown=True),
        Stage("reached", lambda s: of_runs([*steps, "reached"]), 1, shown=True),
        Stage(
            "figures", lambda s: of_runs([*harness, "report", "--out", str(work / "figures")]), 2, [work / "figures"]
        ),
    ]
    return [stage for stage in everything if not given.only or stage.name in given.only]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder, new or empty")
    parser.add_argument(
        "--checkpoint", type=Path, help="of 2-256-6-6; by default one is trained, where the time allows"
    )
    parser.add_argument("--peers", type=Path, help="a folder with checkouts of the published code")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--memory", type=float, help="GiB of RAM of a stage; by default four fifths of what is free")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of every stage")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="a rehearsal: shapes, batches and samples as small as can be"
    )
    parser.add_argument("--only", nargs="*", help="stages, by name; by default all")
    given = parser.parse_args(arguments)
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"'{given.out}' is not empty")
    missing = [name for name in MODULES if find_spec(name) is None]
    work = Path(tempfile.mkdtemp(prefix="harness-gpu-"))
    caches = {
        "XDG_CACHE_HOME": work / "cache",
        "MPLCONFIGDIR": work / "cache" / "matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": work / "cache" / "inductor",
        "TRITON_CACHE_DIR": work / "cache" / "triton",
    }
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": paths, "COLUMNS": "170"} | {name: str(path) for name, path in caches.items()}
    memory = given.memory * 2**30 if given.memory else 0.8 * _free()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given.out, given.checkpoint = given.out.resolve(), given.checkpoint and given.checkpoint.resolve()
    given.peers = given.peers and given.peers.resolve()
    notes = f"Missing packages: {', '.join(missing) or 'none'}."
    driver = Driver(given.out, stages(given, work), given.seconds, environment, memory, notes)
    print(notes, flush=True)
    try:
        code = driver.run()
    finally:
        for stage in driver.stages:
            if stage.state == "running":
                stage.state = "interrupted"
                driver.pack(stage)
        driver.summarise()
        shutil.rmtree(work, ignore_errors=True)
    print((given.out / "summary.md").read_text(encoding="utf-8"))
    return code


def _free() -> float:
    with suppress(ImportError):
        import psutil

        return float(psutil.virtual_memory().available)
    return float("inf")


if __name__ == "__main__":
    sys.exit(main())
