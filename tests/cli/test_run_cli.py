"""Bad input through the command line: one line on stderr, exit code 2, no traceback."""

import os
import re
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness import cli
from harness.decoders.calibration import find_calibration
from harness.errors import HarnessError
from harness.flows import load_flow
from harness.flows.latents import indexed_latents
from harness.measure.expand import expand
from harness.measure.matrix import load_matrix
from harness.options import parse_decoder

MATRIX = '[[datasets]]\nname = "digits"\ncheckpoint = "{}"\n[[decoders]]\nname = "{}"\n{}'


@pytest.fixture
def harness(monkeypatch, capsys, tmp_path):
    """Run the command line in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture
def matrix(tmp_path, tiny_checkpoint):
    def write(checkpoint=tiny_checkpoint, decoder="sejd", more=""):
        path = tmp_path / "matrix.toml"
        path.write_text(MATRIX.format(checkpoint, decoder, more))
        return path

    return write


def assert_refused(result, *parts):
    code, out, err = result
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err, err
    assert all(part in err for part in parts), err


def test_matrices_that_are_wrong(harness, matrix):
    assert_refused(harness("run", "quickstrat"), "did you mean 'quickstart'")
    assert_refused(harness("run", "absent.toml"), "there is no matrix at 'absent.toml'")
    assert_refused(harness("run", matrix(decoder="sejdd")), "unknown decoder 'sejdd'", "did you mean 'sejd'")
    assert_refused(harness("run", matrix(more="tau = -0.5")), "'decoders[0].tau[0]'", "-0.5")
    assert_refused(harness("run", matrix(more="[grid]\nbatch_sizes = [0]")), "'grid.batch_sizes[0]'", "not 0")
    assert_refused(harness("run", matrix(more="initail = 3")), "did you mean 'initial'")
    assert_refused(harness("run", matrix(), "--profile", "fats"), "profile")
    assert_refused(harness("run", matrix(), "--decoder", "ujd tau=-1"), "tau")
    assert_refused(harness("run", matrix(), "--decoder", "no_such_module:Thing"), "cannot import decoder")


def test_checkpoints_that_are_wrong(harness, matrix, tmp_path, tiny_checkpoint):
    assert_refused(harness("run", matrix(checkpoint="absent.pth")), "there is no checkpoint at 'absent.pth'")
    assert_refused(harness("run", matrix(checkpoint="digitz")), "did you mean 'digits'")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_checkpoint.read_bytes()[:1000])
    assert_refused(harness("run", matrix(checkpoint=cut)), "cut.safetensors", "safetensors")
    pickle = tmp_path / "evil.pth"
    pickle.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    assert_refused(harness("run", matrix(checkpoint=pickle)), "evil.pth")
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "runs").exists()


def test_guidance_that_the_flow_cannot_have(harness, tmp_path):
    from safetensors.torch import save_file

    from harness.flows.tarflow import TarFlow, TarFlowConfig

    path = tmp_path / "plain.safetensors"
    save_file(TarFlow(TarFlowConfig(1, 8, 4, 64, 1, 1)).state_dict(), path)
    toml = tmp_path / "matrix.toml"
    toml.write_text(MATRIX.format(path, "ujd", "[grid]\nguidance = [{ scale = 1.0 }]"))
    assert_refused(harness("run", toml, "--out", tmp_path / "run"), "plain.safetensors", "no classes")


def test_folders_that_are_not_ours(harness, matrix, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for resume in ([], ["--resume"]):
        assert_refused(harness("run", matrix(), "--out", tmp_path / "mine", *resume), "manifest.json")
    assert_refused(harness("run", matrix(), "--out", tmp_path / "mine" / "thesis.txt"), "cannot write to")
    assert_refused(harness("run", matrix(), "--out", tmp_path / "mine" / "thesis.txt" / "run"), "cannot write to")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_samples_that_cannot_be_drawn(harness, tmp_path, tiny_checkpoint):
    assert_refused(harness("sample", "digitz"), "did you mean 'digits'")
    assert_refused(harness("sample", tiny_checkpoint, "--decoder", "sejdd"), "did you mean 'sejd'")
    assert_refused(harness("sample", tiny_checkpoint, "--tau", "-1"), "'--tau' should be greater than or equal to 0")
    assert_refused(harness("sample", tiny_checkpoint, "-n", "0"), "0")
    assert_refused(harness("sample", tiny_checkpoint, "--labels", "3,12"), "label 12 is out of range", "0 to 9")
    assert_refused(harness("sample", tiny_checkpoint, "--denoise"), "does not tell the noise", "as a number")
    assert_refused(harness("sample", tiny_checkpoint, "--temperature", "0", "--guidance", "1"), "temperature")
    (tmp_path / "file").write_text("")
    assert_refused(
        harness("sample", tiny_checkpoint, "-n", "1", "--out", tmp_path / "file" / "x.png"), "cannot write to"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


BIG = "99999999999999999999999"
ODD = {
    "--labels": ["inf", "nan", "1e30", "cat", "0.5", "", "0,x", "-2", "true", "[0"],
    "--seed": [BIG, str(2**63), "-1", "1.0", "true", "nan", "9" * 5000, ""],
    "--guidance": ["nan", "inf", "-inf", "x", "true"],
    "--denoise": ["nan", "inf", "0", "true", "autoo"],
    "--temperature": ["nan", "inf", "0"],
    "--tau": ["nan", "inf", "-1", "x", "[1]"],
    "-n": ["0", "1e3", BIG, "1000000000"],
    "--batch-size": ["0", BIG, "1000000", "1.5"],
    "--threads": ["0", "-1", BIG, "nan"],
    "--workers": ["0", BIG],
}


@pytest.mark.parametrize("option", ODD)
def test_values_out_of_range_are_one_sentence_that_names_the_option(harness, tiny_checkpoint, option):
    for value in ODD[option]:
        assert_refused(harness("sample", tiny_checkpoint, option, value), option if len(option) > 2 else "--number")


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        (("calibrate", "digits"), "--samples", ["15", BIG, "nan"]),
        (("calibrate", "digits"), "--seed", [BIG, str(2**63), "-1"]),
        (("tune", "digits", "--batch", "4"), "--budget", ["nan", "inf", "-1", "sej"]),
        (("tune", "digits"), "--batch", ["0", BIG]),
        (("train", "digits"), "--seed", [BIG, "-1", "x"]),
        (("train", "digits"), "--steps", ["0", "1.5", BIG]),
        (("train-features", "digits"), "--seed", [BIG, "-1"]),
        (("train-features", "digits"), "--epochs", ["0", "-1", BIG]),
        (("train-features", "digits"), "--size", ["0", BIG]),
        (("check", "ujd"), "--seed", [BIG, "-1", "x"]),
        (("compare", "a", "b"), "--tolerance", ["nan", "inf", "-1"]),
        (("bench-compare", "a", "b"), "--tolerance", ["nan", "inf", "-1"]),
        (("run", "quickstart"), "--retries", ["-1", BIG]),
    ],
)
def test_every_command_reads_numbers_alike(harness, command, option, values):
    for value in values:
        assert_refused(harness(*command, option, value), option)


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", BIG), ("seed", "-1"), ("tau", "nan"), ("tau", "inf"), ("samples", "1e9"), ("samples", BIG)],
)
def test_options_of_probes_have_the_same_ranges(harness, tiny_checkpoint, option, value):
    assert_refused(harness("probe", "crm", tiny_checkpoint, f"--{option}", value), f"'{option}'")


def test_no_two_seeds_give_the_same_latents(tiny_checkpoint):
    flow = load_flow(tiny_checkpoint)
    assert not torch.equal(indexed_latents(flow, 2**63 - 1, [0]), indexed_latents(flow, 2**63 - 2, [0]))
    for seed in (-1, 2**63, 2**63 + 1):
        with pytest.raises(HarnessError, match="below"):
            indexed_latents(flow, seed, [0])


def test_nothing_is_given_twice(harness, tiny_checkpoint):
    sample = "sample", tiny_checkpoint
    assert_refused(harness(*sample, "--decoder", "sejd tau=0.5 tau=0.1"), "gives 'tau' twice")
    assert_refused(
        harness(*sample, "--decoder", "sejd tau=0.5", "--tau", "0.1"), "gives 'tau', and --tau gives another"
    )
    assert_refused(harness(*sample, "--seed", "1", "--seed", "2"), "--seed is given 2 times")
    assert_refused(harness(*sample, "-n", "1", "--number", "2"), "--number is given 2 times")
    assert_refused(
        harness("probe", "convergence", tiny_checkpoint, "--samples", "1", "--samples", "2"), "--samples is given"
    )


@pytest.mark.parametrize(
    ("spec", "table"),
    [
        ("sejd tau=.5", {"tau": 0.5}),
        ("sejd tau=5.", {"tau": 5.0}),
        ("sejd tau = -.5", {"tau": -0.5}),
        ("sejd iterations=[1, 2]  initial=input", {"iterations": [1, 2], "initial": "input"}),
        ("sejd blocks={ grid = [2, 4] } tau=1", {"blocks": {"grid": [2, 4]}, "tau": 1}),
        ("sejd tau=0.5#0.1", {"tau": "0.5#0.1"}),  # no comment that hides a part
    ],
)
def test_values_of_decoders_are_read_whole(spec, table):
    assert parse_decoder(spec) == {"name": "sejd", **table}


def test_a_matrix_too_large_to_be_meant_is_refused_before_it_is_made(harness, matrix):
    many = f"[{', '.join(map(str, range(1, 101)))}]"
    grid = f"[grid]\nbatch_sizes={many}\nseeds={many}\n"
    assert_refused(
        harness("run", matrix(more=f"max_iterations = {{ grid = {many} }}\n{grid}")), "1,000,000 cells", "10,000"
    )
    assert_refused(harness("run", matrix(more=f"{grid}[timing]\nrounds = 1000\n")), "10,010,000 decodes", "1,000,000")
    assert_refused(harness("run", matrix(more="[grid]\nbatch_sizes=[100000]")), "'grid.batch_sizes[0]'", "65536")
    assert_refused(harness("run", matrix(more="[quality]\nnum_samples=100000000")), "'quality.num_samples'", "10000000")


def test_a_run_and_its_summary(harness, matrix, tmp_path):
    more = "[grid]\nbatch_sizes=[2]\n[timing]\nrounds=2\n[quality]\nnum_samples=4\n[memory]\nenabled=false\n"
    arguments = ["run", matrix(more=more), "--out", tmp_path / "run", "--decoder", "sequential", "--threads", "1"]
    began = time.perf_counter()
    code, out, err = harness(*arguments, "--device", "cpu")
    passed = time.perf_counter() - began
    assert code == 0 and "Traceback" not in err and "2 cells of matrix" in err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│ s")]
    assert sorted(row[0] for row in rows) == ["sejd", "sequential"]
    for _, _, seconds, speedup, forward, *_, fpe, depth, iterations, _ in rows:  # what is printed can be so
        assert 0 < float(seconds) < passed and 0 < float(re.findall(r"[\d.]+", speedup)[0]) < 1000
        assert 0 < float(forward) < 10_000 and 0 < float(fpe) <= 64 and float(depth) >= len(iterations.split())
    for part in ("sejd", "sequential", "speed-up", "FID", "deviation", "FPE", str(tmp_path / "run")):
        assert part in out
    assert_refused(harness(*arguments), "--resume")
    assert_refused(harness(*arguments, "--resume", "--against", "digits-cpuu"), "unknown baseline 'digits-cpuu'")
    code, out, _ = harness(*arguments, "--resume", "--against", tmp_path / "run")
    # of itself no change, or, beside other tests, no verdict
    assert code == 0 and re.search("same|not quiet", out.partition("draws it")[2])


def test_what_cannot_be_written_is_told_before_it_is_made(harness, tmp_path, tiny_checkpoint, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("harness.training.features.load_dataset", None)  # nothing is loaded
    assert_refused(harness("train-features", "digits", "--out", tmp_path / "file" / "x"), "cannot write to")
    assert_refused(harness("sample", tiny_checkpoint, "--out", tmp_path / "file" / "x.png"), "cannot write to")
    assert_refused(harness("sample", tiny_checkpoint, "-n", "9000000", "--out", "x.png"), "give as --out a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_refused(harness("calibrate", "digits"), "cannot write to")
    assert_refused(harness("tune", "digits", "--batch", "4"), "cannot write to")


@pytest.mark.parametrize(
    ("command", "resumes"),
    [("run", True), ("train", True), ("study", True), ("calibrate", False), ("train-features", False),
     ("download", False), ("sample", False), ("compare", False), ("check", False)],
)  # fmt: skip
def test_an_interrupted_command_promises_only_what_it_has(harness, monkeypatch, command, resumes):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.app.commands[command], "callback", stop)
    code, _, err = harness(command, "x", *(["y"] if command == "compare" else []))
    assert code == 130 and err.startswith("interrupted; ") and ("--resume" in err) == resumes


def test_a_grid_of_samples(harness, tmp_path, tiny_checkpoint):
    code, out, _ = harness(
        "sample", tiny_checkpoint, "--decoder", "ujd tau=0.1", "-n", "6", "--labels", "1,-1", "--guidance", "0.5",
        "--denoise", "0.1", "--out", "deep/grid.png", "--batch-size", "4",
    )  # fmt: skip
    assert code == 0 and "6 samples" in out
    with Image.open(tmp_path / "deep" / "grid.png") as image:
        assert image.size == ((3 * 9 - 1) * 4, (2 * 9 - 1) * 4)


def test_the_weights_of_a_wrapped_checkpoint_are_chosen_on_every_command(
    harness, matrix, tmp_path, tiny_checkpoint, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    state = load_file(tiny_checkpoint)
    torch.save({"model": state, "ema": {f"module.{n}": t * 0.5 for n, t in state.items()}, "epoch": 3}, "x.pth")
    shared = ("--out", "run", "--device", "cpu", "--threads", "1")
    code, out, err = harness("sample", "x.pth", "-n", "2", "--device", "cpu")
    assert code == 0 and "'x.pth' uses the weights 'ema', an average (EMA), preferred among 'ema', 'model'" in err
    code, out, err = harness("sample", "x.pth", "-n", "2", "--weights", "model", "--out", "chosen.png")
    assert code == 0 and "'model', as chosen" in err
    assert (tmp_path / "chosen.png").read_bytes() != (tmp_path / "samples.png").read_bytes()
    for command in (("sample",), ("calibrate",), ("tune", "--batch", "1"), ("probe", "convergence"), ("run",)):
        assert_refused(harness(*command, "x.pth", "--weights", "none"), "has no weights 'none'; it has 'ema', 'model'")
    assert_refused(harness("check", "ujd", "--flow", "x.pth", "--weights", "none"), "has no weights 'none'")
    assert_refused(harness("run", matrix(), "--weights", "ema"), "a matrix says weights = 'KEY'")
    small = "[timing]\nrounds=1\n[quality]\nenabled=false\n[memory]\nenabled=false\n[residuals]\nenabled=false\n"
    grid = "[grid]\nbatch_sizes=[2]\n"
    path = matrix(tmp_path / "x.pth", more=f"{grid}{small}")
    code, out, err = harness("run", path, *shared)
    assert code == 0 and err.count("uses the weights 'ema'") == 1, err
    path.write_text(path.read_text().replace("[[decoders]]", 'weights = "model"\n[[decoders]]'))
    code, _, err = harness("run", path, *shared, "--resume")
    assert code == 2 and "with another matrix" in err
    path.write_text(path.read_text().replace('weights = "model"', 'weights = "ema"'))
    (cells,) = expand(load_matrix(str(path)))
    assert cells.checkpoint == "x.pth" and cells.checkpoint_digest in (tmp_path / "run" / "manifest.json").read_text()
    code, out, _ = harness("calibrate", "x.pth", "--samples", "16", "--weights", "model")
    assert code == 0
    assert find_calibration(load_flow("x.pth", weights="model"))
    assert not find_calibration(load_flow("x.pth"))


def test_samples_that_are_not_finite_are_counted_and_no_images(harness, tmp_path, tiny_checkpoint):
    spoiled = ("sample", tiny_checkpoint, "--decoder", "broken_decoders:NotFinite", "--device", "cpu", "-n")
    for count, batch, bad in ((6, 3, 2), (2, 1, 2)):
        for out in ("x.png", "many", "x.parquet", "x.parquet"):
            code, said, err = harness(*spoiled, count, "--batch-size", batch, "--out", f"{count}{out}")
            assert (code, said) == (1, "") and f"error: {bad} of {count} samples are not finite" in err, err
    assert len(list((tmp_path / "6many").rglob("*.png"))) == 4 and not list((tmp_path / "2many").rglob("*.png"))
    assert pq.read_table(tmp_path / "6x.parquet")["index"].to_pylist() == [1, 2, 4, 5]
    with Image.open(tmp_path / "6x.png") as grid:
        assert (255, 0, 255) not in {color for _, color in grid.getcolors()} and not (tmp_path / "2x.png").exists()


def test_a_checkpoint_with_nan_draws_nothing(harness, tmp_path, tiny_checkpoint):
    state = load_file(tiny_checkpoint)
    state["blocks.0.proj_in.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    assert_refused(harness("sample", "nan.pth", "-n", "1"), "nan.pth'", "'blocks.0.proj_in.bias' holds NaN")
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--guidance", "nan"), ("--guidance", "inf"), ("--guidance", "-inf"), ("--guidance", "nan", "--annealed"),
        ("--guidance", "1", "--temperature", "nan"), ("--guidance", "1", "--temperature", "inf"), ("--tau", "nan"),
        ("--denoise", "nan"), ("--denoise", "inf"), ("--denoise", "0"), ("--denoise", "-0.1"), ("--denoise", "1e999"),
    ],
)  # fmt: skip
def test_numbers_that_no_sample_can_be_drawn_with(harness, tiny_checkpoint, tmp_path, options):
    assert_refused(harness("sample", tiny_checkpoint, "-n", "1", *options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "guidance = [{ scale = nan }]", "guidance = [{ scale = inf, annealed = true }]", "tau = [nan]",
        "guidance = [{ scale = 1.0, temperature = nan }]", "guidance = [{ scale = 1.0, temperature = inf }]",
        "denoise = [nan]", "denoise = [inf]", "denoise = [0.0]",
    ],
)  # fmt: skip
def test_numbers_that_no_matrix_can_have(harness, matrix, line):
    assert_refused(harness("run", matrix(more=f"[grid]\n{line}")), line.partition(" ")[0])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_stream_is_too_narrow_for_what_is_printed(tmp_path, encoding):
    """A catalogue whose lines hold what an ASCII or Latin-1 stream cannot: written with what looks like it."""
    (tmp_path / "odd.py").write_text(
        "import sys\nfrom harness.cli.app import main, app\n@app.command('odd')\ndef odd():\n"
        "    print('1 ± 2 × 3 – 4 → 5 τ é 漢 …')\n    print('\\udcff', file=sys.stderr)\n"
        "sys.argv = ['harness', 'odd']\nmain()\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, tmp_path / "odd.py"], capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode(encoding).strip()
    assert (
        said
        == {
            "ascii": "1 +- 2 x 3 - 4 -> 5 tau e ? ...",
            "latin-1": "1 ± 2 × 3 - 4 -> 5 tau é ? ...",
            "cp1252": "1 ± 2 × 3 – 4 -> 5 tau é ? …",
            "utf-8": "1 ± 2 × 3 – 4 → 5 τ é 漢 …",
        }[encoding]
    )


def test_seconds_and_counts_that_are_printed_are_those_that_passed(harness, tiny_checkpoint):
    began = time.perf_counter()
    code, out, _ = harness("sample", tiny_checkpoint, "-n", "4", "--batch-size", "2", "--out", "x.png")
    passed = time.perf_counter() - began
    said = r"x.png: 4 samples by sejd in ([\d.]+) s, ([\d.]+) forward-pass equivalents each, converged\n"
    found = re.fullmatch(said, out)
    assert code == 0 and found, out
    assert 0 <= float(found[1]) <= passed + 0.01 and 0 < float(found[2]) <= 64
    code, out, _ = harness("check", "sequential", "--flow", "coupled", "--clause", "shapes", "--clause", "trace")
    assert code == 0 and out.endswith("sequential: 2 passed, 0 failed, 0 not applicable\n")
