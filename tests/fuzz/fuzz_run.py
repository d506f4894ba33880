"""Fuzzing for a given time: `make fuzz`. Exit 1, with the input, on the first failure of any target.

    python tests/fuzz/fuzz_run.py --seconds 600 [--seed N] [--target NAME] [--inputs N] [--replay FILE --target NAME]

Every target runs in a process of its own, with a limit on its memory, for its share of the time. The seed is printed;
the same seed gives the same inputs in the same order. Where atheris is installed, the targets that read text get a
third of the time with coverage guidance.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
GRACE_S = 300
"""Imports, and the longest an input may take, beyond a target's share."""
GUIDED = ("matrix", "decoder", "training", "schedule", "manifest")
NAMES = (
    "safetensors",
    "pth",
    "wrapped",
    "calibration",
    "schedule",
    "matrix",
    "decoder",
    "values",
    "training",
    "manifest",
    "part",
    "parquet",
    "image",
    "layout",
    "archive",
    "arguments",
)


def main() -> int:
    """Fuzz, each target in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--target", action="append", choices=NAMES)
    parser.add_argument("--inputs", type=int, default=1 << 62)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--folder", type=Path, default=None, help="Where inputs are written; by default a new one.")
    parser.add_argument("--together", action="store_true", help="All targets in this process.")
    parser.add_argument("--guided", action="store_true", help="This one target by atheris, in this process.")
    options = parser.parse_args()
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="harness-fuzz-"))
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    chosen = options.target or list(NAMES)
    if options.together or options.replay or options.guided:
        return _here(options, chosen, seed)
    print(f"seed {seed}: {sys.argv[0]} --seed {seed} --seconds {options.seconds:g} gives the same inputs", flush=True)
    guided = [name for name in GUIDED if name in chosen] if _atheris() else []
    plain = options.seconds * (2 / 3 if guided else 1) / len(chosen)
    jobs = [(name, plain, ["--together"]) for name in chosen]
    jobs += [(name, options.seconds / 3 / len(guided), ["--guided"]) for name in guided]
    code = max([_apart(name, seconds, seed, [*how, "--folder", str(options.folder)]) for name, seconds, how in jobs])
    print(f"the inputs that failed are in {options.folder}" if code else "every input was read or refused", flush=True)
    return code


def _apart(name: str, seconds: float, seed: int, how: list[str]) -> int:
    command = [sys.executable, __file__, "--target", name, "--seed", str(seed), "--seconds", f"{seconds:g}", *how]
    try:
        code = subprocess.run(command, timeout=seconds + GRACE_S).returncode
    except subprocess.TimeoutExpired:
        code = 1
        print(f"{name}: an input does not end", flush=True)
    if code:
        print(f"{name}: failed with code {code}", flush=True)
    return int(code != 0)


def _atheris() -> bool:
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def _here(options: argparse.Namespace, chosen: list[str], seed: int) -> int:
    folder = options.folder
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # what is fitted or downloaded on demand belongs nowhere else
    if options.guided:
        return _guide(chosen[0], folder, seed, options.seconds)
    from fuzz_engine import Guard, loop, replay
    from fuzz_targets import targets

    known = {target.name: target for target in targets()}
    guard, code = Guard(folder), 0
    for name in chosen:
        if options.replay:
            failure = replay(known[name], folder, guard, options.replay.read_bytes())
        else:
            began = time.monotonic()
            count, failure = loop(known[name], folder, guard, seed, options.seconds, options.inputs)
            print(f"{name}: {count:,} inputs in {time.monotonic() - began:.0f} s", flush=True)
        if failure:
            print(failure, flush=True)
            code = 1
    return code


def _guide(name: str, folder: Path, seed: int, seconds: float) -> int:
    """One target, guided by the coverage of the harness's own modules."""
    import atheris

    with atheris.instrument_imports(include=["harness"]):
        from fuzz_targets import targets
    from fuzz_engine import Guard, emptied

    target = next(target for target in targets() if target.name == name)
    target.feed(target.seeds[0], emptied(folder / "work"))
    guard = Guard(folder)
    corpus = folder / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)

    def feed(data: bytes) -> None:
        if failure := guard.run(target, data, emptied(folder / "work")):
            raise RuntimeError(failure)

    flags = [
        f"-seed={seed % (1 << 31) or 1}",
        f"-max_total_time={int(seconds) or 1}",
        "-rss_limit_mb=6000",
        "-verbosity=0",
        f"-artifact_prefix={folder}/{name}-",
        "-print_final_stats=1",
        "-max_len=8192",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], feed)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
