"""`make gpu` without a card: that stages cannot hurt each other, and a rehearsal of the real ones at a tiny size."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLISHED = '''
"""Stands in for a module of the published code: the same names, and nothing but the loop."""
import torch

class Model(torch.nn.Module):
    def __init__(self, in_channels, img_size, patch_size, channels, num_blocks, layers_per_block, num_classes=0):
        super().__init__()
        from harness.flows.tarflow import TarFlow, TarFlowConfig
        shape = TarFlowConfig(in_channels, img_size, patch_size, channels, num_blocks, layers_per_block, num_classes)
        flow = TarFlow(shape)
        self.blocks, self.flow = flow.blocks, [flow]
        self.register_buffer("var", flow.var)
        for block in self.blocks:
            block.register_buffer("attn_mask", torch.ones(1))

    def reverse(self, x, y=None, num_GS_list=None, max_jacobi_list=None, guess_list=None):
        from harness.decoders import build_decoder
        assert torch.is_autocast_enabled("cpu") and (num_GS_list or [8])[0] == 8
        self.flow[0].var.copy_(self.var)
        return build_decoder("sequential").decode(self.flow[0].requires_grad_(False).eval(), x, y).images
'''


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gpu

    return gpu


def python(code):
    return lambda seconds: [sys.executable, "-c", code]


def archived(path):
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_no_stage_takes_the_next_one_with_it(gpu, tmp_path, monkeypatch):
    made = tmp_path / "work" / "made"
    writes = f"import pathlib; p = pathlib.Path({str(made)!r}); p.mkdir(parents=True); (p / 'table').write_text('rows')"
    monkeypatch.setattr(gpu, "ENDS_S", 0.2)
    monkeypatch.setattr(gpu, "PACK_EVERY_S", 0.5)
    monkeypatch.setattr(gpu, "LOOK_EVERY_S", 0.1)
    packed, pack = [], gpu.Driver.pack
    monkeypatch.setattr(gpu.Driver, "pack", lambda self, stage: packed.append(stage.state) or pack(self, stage))
    stages = [
        gpu.Stage("fails", python("print('oh'); raise SystemExit(3)"), 1),
        gpu.Stage("hangs", python(f"{writes}; import time; time.sleep(600)"), 0.4, [made]),
        gpu.Stage("idle", lambda seconds: None, 1),
        gpu.Stage("eats", python("x = b'1' * 2 * 10**8; import time; time.sleep(600)"), 40),
        gpu.Stage("works", python("print('all is well')"), 40, shown=True),
    ]  # fmt: skip
    driver = gpu.Driver(tmp_path / "out", stages, 600.0, {}, memory=100 * 2**20)
    assert driver.run() == 1
    states = {stage.name: stage.state for stage in stages}
    assert states["fails"] == "failed, exit code 3" and states["works"] == "done"
    assert states["hangs"].startswith("ended after its") and states["eats"].startswith("ended, over its 0.1 GiB")
    assert archived(tmp_path / "out" / "hangs.tar.gz") == ["made/table"] and "running" in packed
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert all(f"| {name} | {state} |" in summary for name, state in states.items())
    assert "all is well" in summary and "oh" in (tmp_path / "out" / "log.txt").read_text()


def test_what_has_no_room_is_left_out(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "FILE_BYTES", 2**17)
    made = tmp_path / "made"
    made.mkdir()
    (made / "small").write_bytes(b"1" * 1000)
    (made / "large").write_bytes(os.urandom(2**18))
    driver = gpu.Driver(tmp_path / "out", [gpu.Stage("one", python(""), 1, [made])], 60.0, {})
    assert driver.run() == 0
    assert archived(tmp_path / "out" / "one.tar.gz") == ["made/small"]


def test_a_killed_run_leaves_what_it_had(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--device", "cpu", "--tiny", "--only"]
    process = subprocess.Popen([*command, "environment", "afhq"], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not (out / "log.txt").exists() or "==== environment" not in (out / "log.txt").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert "| environment | interrupted |" in (out / "summary.md").read_text()
    assert "| afhq | not reached |" in (out / "summary.md").read_text()


def rehearse(tmp_path, *stages):
    peers, out = tmp_path / "peers", tmp_path / "out"
    for name in ("ml-tarflow/transformer_flow.py", "GS-Jacobi/GS_Jacobi_sampling.py"):
        (peers / name).parent.mkdir(parents=True)
        (peers / name).write_text(PUBLISHED)
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--device", "cpu", "--tiny"]
    command += ["--peers", str(peers), "--seconds", "2000", *(["--only", *stages] if stages else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    summary = (out / "summary.md").read_text()
    assert done.returncode == 0, summary
    files = list(out.iterdir())
    assert len(files) <= 8 and sum(file.stat().st_size for file in files) < 55 * 2**20
    return out, summary


def test_a_rehearsal(tmp_path):
    out, summary = rehearse(tmp_path, "environment", "afhq", "peers", "reached")
    assert "Missing packages: " in summary and '"torch": "' in summary
    assert "afhq, batch 2, cpu; in brackets" in summary and re.search(r"forward pass [\d.e-]+ s \(0\.7\)", summary)
    assert "apple/ml-tarflow: " in summary and "GS-Jacobi: " in summary
    assert "afhq/manifest.json" in archived(out / "afhq.tar.gz")
    again = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--out", str(out)], cwd=ROOT, capture_output=True)
    assert again.returncode == 2 and b"is not empty" in again.stderr


@pytest.mark.slow
def test_a_rehearsal_of_all_stages(tmp_path):
    out, summary = rehearse(
        tmp_path, "environment", "train", "calibrate", "tune", "trained", "afhq", "peers", "reached", "figures"
    )
    assert "| train | skipped, nothing to do |" in summary and summary.count("| done |") == 8
    assert any(name.endswith("report.html") for name in archived(out / "figures.tar.gz"))
    assert any(name.endswith("batch4.toml") for name in archived(out / "tune.tar.gz"))
    assert re.search(r"auto [\d.e-]+ s \(0\.05\)", summary)
