"""The wheel: it holds what the packages hold, and the README's commands work away from the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from harness.flows.checkpoints import ASSETS

ROOT = Path(__file__).parents[1]
PACKED = ("harness", "analysis", "results/baselines")
LARGEST = 30e6
"""Bytes of the wheel, most of them the shipped flows."""
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LEFT_OUT = SETTINGS["exclude-package-data"]["harness"]


def packed_files():
    """What the wheel is to hold, by its path in the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for name in PACKED
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
        and not any(fnmatch(path.relative_to(ROOT).as_posix(), f"harness/{pattern}") for pattern in LEFT_OUT)
    }  # fmt: skip


def test_every_flow_is_packed():
    flows = {f"harness/flows/assets/{path.name}" for path in ASSETS.glob("*.safetensors")}
    assert flows and flows <= packed_files()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy, so that nothing is left in the working folder."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(source / "out"), str(source)], check=True, capture_output=True)
    (built,) = (source / "out").glob("*.whl")
    yield built
    shutil.rmtree(source)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a command of the installed wheel, in a folder of its own; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("away")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (Path(packages) / "dependencies.pth").write_text(
        "\n".join(sorted(paths))
    )  # not what an editable install added there
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def call(*arguments, program="harness"):
        command = [str(folder / "env" / "bin" / program), *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    yield call
    shutil.rmtree(folder)


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    here = packed_files()
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    assert here - packed == set() == packed - here
    assert wheel.stat().st_size < LARGEST


def test_the_installed_harness_is_that_of_the_wheel_and_knows_what_is_shipped(installed):
    tells = "import harness; from harness.cli import main; print(harness.__file__); main()"
    refused = installed("-c", tells, "train", "digit", program="python")
    assert str(ROOT) not in refused.stdout and "site-packages" in refused.stdout
    assert refused.returncode == 2 and "did you mean 'digits'" in refused.stderr
    listed = installed("list")
    assert listed.returncode == 0, listed.stderr
    for name in ("sejd", "digits", "cifar10", "redundancy", "paper-table1", "digits-cpu"):
        assert f"  {name} " in listed.stdout
    drawn = installed("sample", "digits", "-n", "2", "--decoder", "auto", "--out", "grid.png")
    assert drawn.returncode == 0, drawn.stderr


@pytest.mark.slow
def test_the_commands_work_away_from_the_repository(installed):
    for command in (
        ["run", "quickstart", "--profile", "fast", "--against", "digits-cpu", "--out", "run"],
        ["report", "run"],
        ["compare", "digits-cpu", "run"],
        ["study", "masked-flows", "--profile", "fast", "--out", "studies"],
    ):
        done = installed(*command)
        verdict = "--against" in command or command[0] == "compare"  # which may be that it is slower than it was
        assert done.returncode in ((0, 1) if verdict else (0,)), (command, done.stderr)
        assert "Traceback" not in done.stderr
    done = installed("-c", "from pathlib import Path; print(*Path().rglob('*.html'), *Path().rglob('*.md'))",
                     program="python")  # fmt: skip
    assert "run/report.html" in done.stdout and "masked-flows.md" in done.stdout
