"""Everything of the harness that reads what somebody else may have written."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import random
import re
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from fuzz_engine import INTEGERS, TOKENS, Target, Violation, mutate_bytes, mutate_text
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from analysis.compare.render import print_comparison
from analysis.load import load
from analysis.report.provenance import environment, summary
from analysis.summary import recommendations, summarise
from harness import options
from harness.cli import main
from harness.datasets import dataset_fingerprint, load_dataset
from harness.decoders.calibration import Calibration
from harness.decoders.schedule import LayerChoice, LayerSchedule
from harness.errors import HarnessError
from harness.fitting.calibrate import calibrate
from harness.flows import load_flow
from harness.flows.tarflow import TarFlow, TarFlowConfig
from harness.measure.expand import expand
from harness.measure.matrix import SHIPPED, load_matrix
from harness.measure.probes.probe import build_probe
from harness.options import parse_decoder
from harness.runs.store import MANIFEST, RunStore, read_run
from harness.runs.tables import TABLES
from harness.training.config import read_config, shipped_configs

ASSETS = SHIPPED.parents[1] / "flows" / "assets"


def targets() -> list[Target]:
    """Every target, its seeds made."""
    state = _tiny().state_dict()
    tensors = save(state, {"sigma": "0.05"})
    return [
        Target(
            "safetensors",
            [tensors, (ASSETS / "maf-breast-cancer.safetensors").read_bytes()],
            _checkpoint("x.safetensors"),
            _mutate_safetensors,
        ),
        Target("pth", [_torch(state), _torch(state, zipped=False)], _checkpoint("x.pth"), _mutate_pth),
        Target("wrapped", [_torch({"model": state}), _torch(state)], _wrapped, _mutate_wrapped),
        Target("calibration", [_calibration()], _file("c.safetensors", Calibration.load), _mutate_safetensors),
        Target("schedule", [_schedule()], _file("s.toml", LayerSchedule.load), mutate_text),
        Target("matrix", _matrices(), _matrix, mutate_text),
        Target("decoder", [b"sejd tau=0.1 initial=input", b"gs-jacobi blocks=[1,2]", b"ujd"], _decoder, mutate_text),
        Target("values", VALUES, _value, mutate_text),
        Target("training", _configs(), _file("t.toml", lambda path: read_config(str(path))), mutate_text),
        Target("manifest", [_manifest()], _run_with_manifest, mutate_text),
        Target("part", [_part(), _part("zstd")], _run_with_part, _mutate_part),
        Target("parquet", [_image_parquet()], _image_shard, mutate_bytes),
        Target("image", _images(), _image, mutate_bytes),
        Target("layout", [b"train/a/0.png\0Test/a/1.png", b"1/0.png\x002/0.jpg"], _layout, _mutate_layout),
        Target("archive", [_archive(), _archive(20 << 20)], _cifar, mutate_bytes),
        Target("arguments", [b"list", b"compare\0a\0b", b"sample\0./x.pth\0-n\x001"], _arguments, _mutate_arguments),
    ]


def _tiny() -> TarFlow:
    torch.manual_seed(0)
    return TarFlow(
        TarFlowConfig(image_channels=1, image_size=4, patch=2, channels=64, blocks=1, layers_per_block=1, num_classes=2)
    )


def _file(name, read):
    """Feeds a reader with a file of this name."""

    def feed(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        read(folder / name)

    return feed


def _checkpoint(name):
    """Loads a flow; one that loads must encode."""

    def read(path: Path) -> None:
        flow = load_flow(path)
        latents = flow.sample_latents(1)
        assert latents.numel() < 1 << 24, "a flow larger than its file"

    return _file(name, read)


def _torch(state, zipped=True) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _wrapped(data: bytes, folder: Path) -> None:
    """Loads a flow from what a training script may have saved; what it unwraps goes to a cache in the folder."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    _checkpoint("x.safetensors" if data[8:9] == b"{" else "x.pth")(data, folder)


_KEYS = ["model", "ema", "state_dict", "module", "a.b", "", ".", "../x", "ema_model", "n_averaged", 0, "x" * 500]


def _mutate_wrapped(seeds: list[bytes], rng: random.Random) -> bytes:
    """State dicts behind prefixes, below keys and beside other things, in dicts that may hold themselves."""
    if rng.random() < 0.2:
        return mutate_bytes(seeds, rng)
    prefixes = ["module.", "_orig_mod.", "ema.", "model.", ".", "a." * 300, ""]
    content: dict = {}
    for _ in range(rng.randint(1, 3)):
        prefix = "".join(rng.choices(prefixes, k=rng.randint(0, 2)))
        state = {prefix + name: tensor for name, tensor in _tiny().state_dict().items() if rng.random() < 0.98}
        if rng.random() < 0.2:
            state[rng.choice(sorted(state))] = rng.choice([torch.tensor(float("nan")), torch.zeros(0), 3, None])
        for _ in range(rng.choice([0, 0, 1, 2, 8])):
            state = {rng.choice(_KEYS): state}
        content |= state
    beside = [
        3,
        None,
        "text",
        [1, {"a": torch.ones(2)}],
        torch.tensor(1),
        content,
        torch.zeros(2, dtype=torch.complex64),
    ]
    content |= {rng.choice(_KEYS): rng.choice(beside) for _ in range(rng.randint(0, 3))}
    if rng.random() < 0.3:
        flat = {str(name): tensor.clone() for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
        return save(flat, {"sigma": "0.05", "head_dim": "64"})
    return _torch(content, zipped=rng.random() < 0.7)


class _Hostile:
    """Unpickling this would call a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = [
    _Hostile(os.system, "true"),
    _Hostile(open, "../../escape", "w"),
    _Hostile(exec, "import os; os.mkdir('../../escape')"),
    _Hostile(bytearray, 1 << 40),
    _Hostile(torch.zeros, 1 << 40),
    _Hostile(__import__, "antigravity"),
]


def _mutate_pth(seeds: list[bytes], rng: random.Random) -> bytes:
    """Changes anywhere, in the pickle of a sound archive, in how it is packed, or another pickle altogether."""
    kind = rng.randrange(5)
    if kind == 0:
        return mutate_bytes(seeds, rng)
    if kind == 1:
        hostile = {"var": rng.choice(HOSTILE)}
        return pickle.dumps(hostile) if rng.random() < 0.5 else _torch(hostile, zipped=rng.random() < 0.5)
    if kind == 2:
        size = rng.choice([1, 1 << 20, 1 << 30, 1 << 40])
        state = {"var": torch.zeros(1).expand(size, 4), "blocks.0.proj_in.weight": torch.zeros(1).expand(64, size)}
        return _torch(state | rng.choice([{}, _tiny().state_dict()]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seeds[0])) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = mutate_bytes([content], rng) if kind == 3 else content + bytes(rng.choice([0, 64 << 20]))
            packed = zipfile.ZIP_DEFLATED if kind == 4 else zipfile.ZIP_STORED
            new.writestr(entry.filename, content, packed)
    return buffer.getvalue()


def _mutate_safetensors(seeds: list[bytes], rng: random.Random) -> bytes:
    """Changes anywhere, or in the header with its length kept right."""
    if rng.random() < 0.3:
        return mutate_bytes(seeds, rng)
    data = rng.choice(seeds)
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    match rng.randrange(4):
        case 0:
            numbers = list(re.finditer(rb"\d+", header))
            found = rng.choice(numbers)
            header = header[: found.start()] + str(rng.choice(INTEGERS)).encode() + header[found.end() :]
        case 1:
            known = json.loads(header)
            entry = known[rng.choice(sorted(known))]
            if "shape" in entry:
                entry["shape"] = rng.choice([[], [0], entry["shape"][::-1], [1 << 40], entry["shape"] + [1]])
                entry["dtype"] = rng.choice(
                    ["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "U8", "C64"]
                )
            else:
                key = rng.choice(sorted(entry) or ["head_dim"])
                entry[key] = rng.choice(TOKENS).decode(errors="replace")
            header = json.dumps(known).encode()
        case 2:
            known = json.loads(header)
            name = rng.choice(sorted(known))
            value = known.pop(name)
            if rng.random() < 0.5:
                known[name.replace("0", rng.choice(["1", "", "../", "99999999999"]))] = value
            header = json.dumps(known).encode()
        case 3:
            header = mutate_text([header], rng)
    return len(header).to_bytes(8, "little") + header + body


def _calibration() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        calibrate(_tiny(), samples=16).save(Path(folder) / "c.safetensors")
        return (Path(folder) / "c.safetensors").read_bytes()


def _schedule() -> bytes:
    layers = (LayerChoice("sequential"), LayerChoice("ujd", {"tau": 0.1}))
    with tempfile.TemporaryDirectory() as folder:
        LayerSchedule(layers, "cpu", 4, None, 0.1, 0.1, 0.01).save(Path(folder) / "s.toml")
        return (Path(folder) / "s.toml").read_bytes()


_MATRIX = b"""name = "fuzz"
description = "all keys"
device = "cpu"
dtype = "float32"
[[datasets]]
name = "digits"
checkpoint = "digits"
size = 8
[[decoders]]
name = "gs-jacobi"
label = "gs"
tau = [0.5, 0.1]
blocks = { grid = [2, 4] }
[[decoders]]
name = "sequential"
[grid]
tau = [0.5]
batch_sizes = [1, 16]
seeds = [0]
guidance = [{ scale = 1.5, components = "ab", annealed = true, temperature = 0.9 }]
[[exclude]]
decoder = "gs-jacobi"
batch_size = 16
[timing]
rounds = 5
warmup = 1
[quality]
num_samples = 100
[profiles.fast.timing]
rounds = 2
"""


def _matrices() -> list[bytes]:
    """All keys, and the shipped ones whose checkpoints are there and small."""
    shipped = [path.read_bytes() for path in sorted(SHIPPED.glob("*.toml"))]
    return [_MATRIX, *(text for text in shipped if b"random:" not in text)]


def _matrix(data: bytes, folder: Path) -> None:
    (folder / "m.toml").write_bytes(data)
    matrix = load_matrix(str(folder / "m.toml"))
    out = (folder / matrix.name).resolve()  # where `harness run` writes to
    if out.parent != folder.resolve():
        raise Violation(f"a matrix called {matrix.name!r} would be run in {out}")
    for cell in expand(matrix):
        assert re.fullmatch("[0-9a-f]+", cell.cell_id), "an id that is no file name"


def _decoder(data: bytes, folder: Path) -> None:
    table = parse_decoder(data.decode(errors="surrogateescape"))
    from harness.decoders import build_decoder

    build_decoder(table.pop("name"), **table)


VALUES = [b"value=7", b"value=0.5", b"value=.5", b"value=[0, 1]", b"value=0,1,2", b"value=1e3", b"value=true"]
KINDS = (
    "Seed", "Count", "Batch", "Processes", "Retries", "Real", "NonNegative", "Positive", "Labels", "CalibrationSamples",
    "TuningSamples",
)  # fmt: skip


def _value(data: bytes, folder: Path) -> None:
    """The value of an option: every kind takes it, in its range, or refuses it in a sentence."""
    text = data.decode(errors="surrogateescape").partition("=")[2]
    for kind in KINDS:
        with contextlib.suppress(HarnessError):
            value = options.read_value("--x", getattr(options, kind), text)
            for number in value if kind == "Labels" else [value]:
                assert math.isfinite(number) and not isinstance(number, bool), number
                assert -1 <= number < 2**63 or isinstance(number, float), number
    for name in ("seed", "tau", "samples", "batch"):
        with contextlib.suppress(HarnessError):
            json.dumps(build_probe("crm", **{name: text}).options(), allow_nan=False)


def _configs() -> list[bytes]:
    return [(ASSETS / f"{name}.toml").read_bytes() for name in shipped_configs()]


def _manifest() -> bytes:
    matrix = {"name": "m", "quality": {"max_deviation": 0.1, "max_fid_increase": 0.1}, "device": "cpu"}
    facts = {"format": 1, "harness": "0.1.0", "matrix": matrix, "cells": "0", "code_versions": ["a"],
             "checkpoints": {"digits": "00"}, "environment": {"cpu": "x", "threads": 1, "packages": {"torch": "2"}},
             "sessions": {"a": {"started": "2026-01-01T00:00:00", "environment": {}}}}  # fmt: skip
    return json.dumps(facts, indent=1).encode()


def _rows(table: str) -> pd.DataFrame:
    return pd.DataFrame({"cell_id": ["a", "a", "b"], "cell_key": ["a", "a", "b"], "layer": [1, 2, 1],
                         "iterations": [3, 4, 5], "converged": [True] * 3, "mode": ["jacobi"] * 3}
                        ).reindex(columns=TABLES[table].names)  # fmt: skip


def _part(compression: str = "snappy") -> bytes:
    buffer = io.BytesIO()
    _rows("layers").to_parquet(buffer, compression=compression, index=False)
    return buffer.getvalue()


def _run_with_manifest(data: bytes, folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    (run / MANIFEST).write_bytes(data)
    _read_everything(run)


def _read_everything(run: Path) -> None:
    def summarised() -> None:
        summarise(read_run(run))

    def compared() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            print_comparison(read_run(run), read_run(run))

    def reported() -> None:
        runs = load([run])
        runs.cells, runs.tolerance, runs.summary()
        repr(runs), runs._repr_html_(), [recommendations(run) for run in runs.runs]
        environment(runs)
        summary(runs)

    def resumed() -> None:
        with RunStore.resume(run) as store:
            store.append("layers", [{"cell_id": "c", "cell_key": "c", "layer": 1}])
            store.compact()

    for read in (summarised, compared, reported, resumed):
        with contextlib.suppress(HarnessError):
            read()


def _run_with_part(data: bytes, folder: Path) -> None:
    run = folder / "run"
    with RunStore.create(run, json.loads(_manifest())) as store:
        store.append("layers", [{"cell_id": "z", "cell_key": "z", "layer": 1}])
    (run / "layers.parquet" / "part-0-fuzz.parquet").write_bytes(data)
    _read_everything(run)
    with RunStore.resume(run) as store:  # whatever the part held, this row is kept, and the table can be read
        assert "z" in set(store.read("layers")["cell_id"]), "a sound row is lost"


ODD = ["x", [1], {"a": 1}, 1.5, None, 2**63 - 1, b"\xff", pd.Timestamp(0)]


def _mutate_part(seeds: list[bytes], rng: random.Random) -> bytes:
    """Changes anywhere, or a sound file with other columns."""
    if rng.random() < 0.7:
        return mutate_bytes(seeds, rng)
    frame = _rows("layers")
    column = rng.choice([*frame.columns, "other"])
    values = rng.choice(ODD)
    frame[column] = pd.Series([values] * 3)
    if rng.random() < 0.3:
        frame = frame.drop(columns=rng.choice(list(frame.columns)))
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=rng.random() < 0.2)
    return buffer.getvalue()


def _images() -> list[bytes]:
    picture = Image.effect_noise((16, 12), 50).convert("RGB")
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        found.append(buffer.getvalue())
    ramp, text = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16), PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * (2 << 20), zip=True)
    deep = [Image.fromarray(ramp.astype(kind)) for kind in (np.uint16, np.int32, np.float32)]
    modes = [(image, "TIFF", {}) for image in deep] + [(deep[0], "PNG", {}), (deep[0], "PPM", {})]
    modes += [(picture.convert(mode), "PNG", {"pnginfo": text}) for mode in ("RGBA", "LA", "P", "L", "1")]
    modes += [(picture.convert("P"), "PNG", {"transparency": bytes(9)}), (picture, "PNG", {"transparency": (1, 2, 3)})]
    modes += [(picture.convert("RGBA"), "WEBP", {}), (picture.convert("CMYK"), "TIFF", {})]
    for image, kind, given in modes:
        image.save(buffer := io.BytesIO(), kind, **given)
        found.append(buffer.getvalue())
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    return [*found, bomb.getvalue(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n"]


def _image(data: bytes, folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "1.png").write_bytes(data)
    load_dataset("imagefolder", "train", folder, size=8)


PARTS = ["train", "Test", "VAL", "training", "a", "b", "10", "9", ".ipynb_checkpoints", "__MACOSX", "x.png", "\udcff",
         "a\nb", "é" * 99, "0.png", "1.JPG", "._0.png", "up", "none.png"]  # fmt: skip


def _mutate_layout(seeds: list[bytes], rng: random.Random) -> bytes:
    paths = ["/".join(rng.choices(PARTS, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 8))]
    return "\0".join([*paths, *rng.choice(seeds).decode().split("\0")][: rng.randint(1, 9)]).encode(
        errors="surrogateescape"
    )


def _layout(data: bytes, folder: Path) -> None:
    """A folder of images laid out in any way: "up" is a link to its root, "none.png" one to nothing."""
    Image.new("L", (4, 4)).save(png := io.BytesIO(), "PNG")
    for name in data.decode(errors="surrogateescape").split("\0"):
        with contextlib.suppress(OSError):  # a file may be where a folder is wanted
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name in ("up", "none.png"):
                path.symlink_to(folder if path.name == "up" else "nowhere")
            else:
                path.write_bytes(png.getvalue())
    for split in ("train", "test"):
        with contextlib.suppress(HarnessError):
            images = load_dataset("imagefolder", split, folder, size=8)
            assert images.labels is None or len(images.labels) == len(images), "images without labels beside others"
        with contextlib.suppress(HarnessError):
            dataset_fingerprint("imagefolder", split, folder)
    load_dataset("imagefolder", "train", folder)


def _image_parquet() -> bytes:
    images = [{"bytes": data, "path": "../../escape.png"} for data in _images()[:3]]
    buffer = io.BytesIO()
    pd.DataFrame({"img": images, "label": [0, 1, 0]}).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _image_shard(data: bytes, folder: Path) -> None:
    (folder / "train.parquet").write_bytes(data)
    load_dataset("parquet", "train", folder, size=8)


def _archive(padding: int = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=9) as archive:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            content = bytes(3073) + bytes(padding // 3073 * 3073)
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _cifar(data: bytes, folder: Path) -> None:
    (folder / "cifar-10-binary.tar.gz").write_bytes(data)
    load_dataset("cifar10", "train", folder)


COMMANDS = [
    "list",
    "compare",
    "bench-compare",
    "check",
    "baseline",
    "run",
    "train",
    "report",
    "sample",
    "probe",
    "tune",
    "calibrate",
    "train-features",
    "download",
]
WORDS = [
    "save",
    "bench",
    "convergence",
    "redundancy",
    "./x.pth",
    "./x.toml",
    "./run",
    "absent",
    "../../escape",
    "/",
    "",
    "-",
    "--",
    "-n",
    "1",
    "-1",
    "1e9",
    "nan",
    "--tau",
    "--out",
    "./out",
    "--resume",
    "--profile",
    "fast",
    "--decoder",
    "ujd",
    "ujd tau=x",
    "--data-root",
    "/proc/self",
    "--seed",
    "--labels",
    "inf",
    "1e30",
    "99999999999999999999999",
    ".5",
    "--denoise",
    "--temperature",
    "0,x",
    "--batch-size",
    "--guidance",
    "--format",
    "png",
    "json",
    "--tolerance",
    "--device",
    "cuda",
    "--threads",
    "0",
    "--help",
    "--flow",
    "--budget",
    "--batch",
    "\udcff",
    "é" * 300,
    "--against",
    "--replace",
    "--samples",
    "16",
    "decoders",
    "nowhere:Nothing",
    "nowhere",
    "flows",
]


def _mutate_arguments(seeds: list[bytes], rng: random.Random) -> bytes:
    words = [rng.choice(COMMANDS), *rng.choices(WORDS, k=rng.randint(0, 6))]
    return "\0".join(words).encode(errors="surrogateescape")


def _arguments(data: bytes, folder: Path) -> None:
    """A command line in a folder with a broken checkpoint, a broken matrix and an empty run, no flow for `check`.

    So nothing long can start. A place outside of the folder is the user's to name, and the guard's to refuse: none is.
    """
    (folder / "x.pth").write_bytes(b"PK\3\4 broken")
    (folder / "x.toml").write_bytes(b"[[datasets]]\nname = 'absent'\n")
    RunStore.create(folder / "run", json.loads(_manifest())).close()
    before, said = os.getcwd(), io.StringIO()
    os.chdir(folder)
    try:
        words = data.decode(errors="surrogateescape").split("\0")
        sys.argv = ["harness", *(re.sub(r"(^|=)/|\.\.", r"\1_", word) for word in words)]
        no_flows = mock.patch("harness.contract.checking.default_flows", return_value=[])
        with no_flows, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main()
    except SystemExit as ended:
        assert ended.code in (0, 1, 2), ended.code
        assert ended.code != 2 or said.getvalue().count("error: ") == 1 or len(sys.argv) == 2, said.getvalue()
    finally:
        os.chdir(before)
