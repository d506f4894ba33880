"""Plans of studies are sound, what they need is measured once, and a number that changed is noticed."""

import shutil

import pytest

import harness.measure.studies as studies_module
from harness.cli.studies import run_studies
from harness.errors import HarnessError
from harness.measure.planning import plan_study
from harness.measure.probes.probe import build_probe
from harness.measure.studies import PROFILES, execute, load_plan, plans, studies
from harness.progress import SILENT
from harness.runs.store import read_run

PLAN = """
title = "A small sweep"
threads = 1
[[run]]
name = "digits"
[run.matrix]
datasets = [{ name = "digits" }]
decoders = [{ name = "sequential" }, { name = "ujd" }, { name = "sejd" }]
grid = { tau = [0.5, 2.0], batch_sizes = [16] }
timing = { rounds = 9 }
quality = { num_samples = 16 }
memory = { enabled = false }
residuals = { enabled = false }
[run.profiles.fast]
timing = { rounds = 1, warmup = 0 }
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Puts plans where the shipped ones would be."""
    shipped, folder = studies_module.SHIPPED, tmp_path / "plans"
    folder.mkdir()
    monkeypatch.setattr(studies_module, "SHIPPED", folder)

    def write(name, text):
        path = folder / name.replace("-", "_") / "plan.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for file in ("findings.py", "text.md.j2"):
            if (shipped / path.parent.name / file).is_file():
                shutil.copy(shipped / path.parent.name / file, path.parent)

    return write


@pytest.mark.parametrize("profile", PROFILES)
def test_every_shipped_plan_is_sound(profile):
    found = plans("all")
    assert sorted(one.name for one in found) == sorted(studies())
    for one in found:
        for run in one.run:
            assert run.parse(profile).name == run.name
        for run in one.probe:
            build_probe(run.probe, **run.settings(profile))


def test_what_is_read_comes_first():
    order = [one.name for one in plans("all")]
    assert all(order.index(read) < order.index(one.name) for one in plans("all") for read in one.reads)
    assert [one.name for one in plans("reconstruction")] == ["tau", "reconstruction"]


def test_a_profile_overrides_the_matrix_and_a_shipped_one_is_found_by_name(write):
    shipped = '\n[[run]]\nname = "cats"\nmatrix = "afhq"\nset = { grid = { tau = [0.1], batch_sizes = [1] } }\n'
    write("small", PLAN + shipped)
    digits, cats = load_plan("small").run
    assert (digits.parse("fast").timing.rounds, digits.parse("full").timing.rounds) == (1, 9)
    assert digits.parse("fast").grid.tau == [0.5, 2.0]
    assert (cats.parse("full").grid.tau, cats.parse("full").datasets[0].name) == ([0.1], "afhq-cat")


def test_a_probe_of_several_flows_has_a_run_for_each(write):
    one = '\n[[probe]]\nname = "one"\nprobe = "crm"\nflow = "digits"\n'
    write(
        "small", PLAN + one + one.replace('"one"', '"two"').replace('"digits"', '["digits", "here/my.1.safetensors"]')
    )
    runs = [run.flows for run in load_plan("small").probe]
    assert runs == [[("one", "digits")], [("two-digits", "digits"), ("two-my.1", "here/my.1.safetensors")]]


def test_a_resumed_study_is_told_by_what_is_left(write, tmp_path):
    write("small", PLAN + '\n[[probe]]\nname = "crm"\nprobe = "crm"\nflow = "digits"\n')
    plan, out = load_plan("small"), tmp_path / "out"

    def seconds(resume, took=("fast", 100.0)):
        return plan_study(plan, "fast", out, resume, None, took)[0].seconds

    assert seconds(False) == seconds(True) == 100.0 and seconds(True, ("full", 100.0)) is None
    execute(plan, "fast", out, lambda: SILENT)
    assert seconds(True) == 0.0 == seconds(True, None) and seconds(False) == 100.0
    spent = read_run(out / "small" / "digits").manifest["seconds"]
    shutil.rmtree(out / "small" / "crm")
    assert seconds(True) == pytest.approx(100.0 - spent)


OPTIONAL = """
[[run]]
name = "a"
[run.matrix]
datasets = [{ name = "digits", checkpoint = "large-flow", optional = true }]
decoders = [{ name = "sequential" }]
[[probe]]
name = "large"
probe = "crm"
flow = "large-flow"
optional = true
[[probe]]
name = "crm"
probe = "crm"
flow = "digits"
"""


def test_an_optional_flow_that_is_not_there_is_told_and_left_out(write, tmp_path, tiny_checkpoint):
    write("small", PLAN + OPTIONAL)
    plan, root = load_plan("small"), tmp_path / "data"
    root.mkdir()
    absent = plan.absent("fast", str(root))
    assert list(absent) == ["large-flow"] and "there is no flow 'large-flow'" in absent["large-flow"]
    matrices, probes = plan.work("fast", absent)
    assert [name for name, _ in matrices] == ["digits"] and [name for name, *_ in probes] == ["crm"]
    whole, *planned = plan_study(plan, "fast", tmp_path / "out", False, str(root), None)
    assert whole.missing == tuple(absent.values()) and len(planned) == 2
    shutil.copy(tiny_checkpoint, root / "large-flow.safetensors")
    assert plan.absent("fast", str(root)) == {}
    assert [name for name, _ in plan.work("fast")[0]] == ["digits", "a"]
    whole, *planned = plan_study(plan, "fast", tmp_path / "out", False, str(root), None)
    assert not whole.missing and len(planned) == 4, "a probe finds its flow in the data root too"


def test_a_flow_that_is_not_there_and_not_optional_is_an_error(write, tmp_path):
    write("small", 'title = "x"\n[[probe]]\nname = "large"\nprobe = "crm"\nflow = "large-flow"\n')
    assert load_plan("small").absent("fast") == {}
    with pytest.raises(HarnessError, match="large-flow"):
        execute(load_plan("small"), "fast", tmp_path / "out", lambda: SILENT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'title' is missing"),
        ('title = "x"\nrun = [{ name = "a", matrix = "afhq", sets = {} }]', "did you mean 'set'?"),
        ('title = "x"\nrun = [{ name = "a", matrix = "afhq" }, { name = "a", matrix = "afhq" }]', "two runs named 'a'"),
        ('title = "x"\nrun = [{ name = "a", matrix = "afhq", profiles = { quick = {} } }]', "unknown profile 'quick'"),
        ('title = "x"\nrun = [{ name = "../a", matrix = "afhq" }]', "name"),
        ('title = "x"\nprobe = [{ name = "a", probe = "crm", flow = ["b", "c/b"] }]', "two runs named 'a-b'"),
        ('title = "x"\nreads = ["tau2"]', "unknown study 'tau2'"),
        ("title = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_plan_is_one_sentence(text, words, write):
    write("wrong", text)
    with pytest.raises(HarnessError, match="wrong/plan.toml") as error:
        load_plan("wrong")
    assert words in str(error.value)


def test_a_wrong_matrix_in_a_plan_names_the_run_and_the_key(write):
    write("wrong", PLAN.replace("rounds = 9", "rounds = 0"))
    with pytest.raises(HarnessError, match=r"run 'digits'.*timing\.rounds"):
        load_plan("wrong").run[0].parse("full")


def test_plans_that_read_each_other_are_refused(write):
    write("a", 'title = "a"\nreads = ["b"]')
    write("b", 'title = "b"\nreads = ["a"]')
    with pytest.raises(HarnessError, match="a -> b -> a"):
        plans("a")


def test_an_unknown_study_is_one_sentence():
    with pytest.raises(HarnessError, match="did you mean 'tau'"):
        plans("tua")


def study(folder, out="runs", **options):
    chosen = {"resume": False, "check": False} | options
    return run_studies("tau", profile="fast", out=folder / out, results=folder / "results", data_root=None, **chosen)


def test_a_study_without_a_text_is_refused_before_it_is_measured(write, tmp_path):
    write("textless", PLAN)
    with pytest.raises(HarnessError, match="textless/text.md.j2 is missing"):
        run_studies("textless", "fast", tmp_path / "runs", tmp_path / "results", False, False, None)
    assert not (tmp_path / "runs").exists()


def deterministic(folder):
    found = (folder / "results" / "tau").glob("*.csv")
    return {path.name: path.read_bytes() for path in found if not path.name.endswith("-timed.csv")}


def test_a_study_is_measured_rendered_and_compared(write, tmp_path, capsys):
    write("tau", PLAN)
    assert study(tmp_path) == 0
    first = deterministic(tmp_path)
    assert {"sensitivity.csv", "iterations.csv", "claims.csv"} <= set(first)
    assert (tmp_path / "results" / "tau" / "sensitivity.png").stat().st_size > 0
    assert "A small sweep" in (tmp_path / "results" / "tau.md").read_text(encoding="utf-8")

    with pytest.raises(HarnessError, match="--resume"):
        study(tmp_path)
    assert study(tmp_path, resume=True, check=True) == 0
    assert "as stored" in capsys.readouterr().out

    stored = tmp_path / "results" / "tau" / "sensitivity.csv"
    tampered = stored.read_text(encoding="utf-8").replace("\ndigits,digits,digits,sejd,sejd,0.5,16,", "\ndigits,digits,digits,sejd,sejd,0.5,17,")  # fmt: skip  # noqa: E501
    assert tampered.encode() != first["sensitivity.csv"]
    stored.write_text(tampered, encoding="utf-8")
    text = (tmp_path / "results" / "tau.md").read_text(encoding="utf-8")
    assert study(tmp_path, resume=True, check=True) == 1
    told = capsys.readouterr().err
    assert "sensitivity.csv" in told and "batch_size" in told
    assert stored.read_text(encoding="utf-8") == tampered, "a check leaves what is stored"
    assert (tmp_path / "results" / "tau.md").read_text(encoding="utf-8") == text
    assert study(tmp_path, resume=True) == 0
    assert deterministic(tmp_path) == first


@pytest.mark.slow
def test_a_rerun_repeats_every_digit(write, tmp_path):
    write("tau", PLAN)
    assert study(tmp_path) == 0
    assert study(tmp_path, out="again", check=True) == 0
