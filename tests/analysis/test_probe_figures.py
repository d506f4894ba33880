"""Figures and studies of the probes, from tables whose truth is known."""

import numpy as np
import pytest
from PIL import Image
from synthetic import PROBES, write_run

from analysis.figures import certificate, guesses, jacobian_powers, redundancy
from analysis.figures.plot import Omitted
from analysis.load import load
from analysis.studies.convergence import findings as convergence_study
from analysis.studies.redundancy import findings as redundancy_study
from harness.runs.store import RunStore

LAYERS, TOKENS, SAMPLES = 3, 16, 4
RATE = {1: 0.5, 2: 0.25, 3: 0.09}
"""By what each iteration multiplies the error."""
START = {"zeros": 1.0, "normal": 2.0, "input": 0.25}
TURN = {"attention": {1: 0.4, 2: 0.04, 3: 0.02}, "input": {1: 0.2, 2: 0.18, 3: 0.19}}
"""1 - cosine at o = 1, by reading and layer."""
FID = {"attention": 0.5, "input": 30.0}
"""Added to the flow's; noise and blur that leave images plain add 0.96."""


def identity(checkpoint="digits", code="v1", **extra):
    about = {"dataset": "digits", "checkpoint": checkpoint, "num_tokens": TOKENS}
    return {"cell_id": f"{checkpoint}-{code}", "cell_key": checkpoint} | about | extra


def place(layer):
    return {"layer": layer, "block": LAYERS - layer}


def convergence_rows(**of):
    for layer, rate in RATE.items():
        for initial, start in START.items():
            for sample in range(SAMPLES):
                last = 15 - sample  # samples end at different times, the last iteration changing nothing
                for iteration in range(last + 1):
                    error = start * rate**iteration if iteration < last else 1e-16
                    before = start * rate ** (iteration - 1)
                    residual = None if iteration == 0 else 0.0 if iteration == last else before - error
                    yield (
                        identity(**of)
                        | place(layer)
                        | {
                            "initial": initial,
                            "sample": sample,
                            "iteration": iteration,
                            "residual": residual,
                            "error_inf": 3 * error,
                            "error_rms": error,
                        }
                    )


def end_rows(**of):
    for layer in RATE:
        for initial in START:
            for sample in range(SAMPLES):
                yield (
                    identity(**of)
                    | place(layer)
                    | {
                        "initial": initial,
                        "sample": sample,
                        "iterations": 14 - sample,
                        "latest_token": -1,
                        "error_inf": 1e-15,
                    }
                )


def jacobian_rows(**of):
    for layer, rate in RATE.items():
        for sample in range(2):
            for power in range(1, TOKENS + 1):
                norm = 4 * rate**power * (1 + sample) if power < TOKENS else 0.0
                yield (
                    identity(**of)
                    | place(layer)
                    | {
                        "sample": sample,
                        "power": power,
                        "norm_spectral": norm,
                        "norm_frobenius": 2 * norm,
                    }
                )


def redundancy_rows(samples=8, shift=0.0, **of):
    for reading, turns in TURN.items():
        for scope in ("layer", "all"):
            for o in (0, 1, 2, 5, 16):
                for layer, turn in turns.items():
                    cosine = 1 - turn * min(o, 2) + shift
                    last = scope == "all" and layer == LAYERS
                    yield identity(num_layers=LAYERS, **of) | place(layer) | {
                        "scope": scope, "reading": reading, "o": o, "cosine": cosine, "cosine_p10": cosine - 0.01,
                        "cosine_p90": cosine, "l2": 1 - cosine, "l2_p10": 1 - cosine, "l2_p90": 1 - cosine,
                        "l2_relative": 1 - cosine, "fid": 1.0 + FID[reading] * (o > 0) if last else None,
                        "leak": None if o == 0 or scope == "all" else 0.9 if reading == "attention" else 0.0,
                        "fid_features": "features-digits" if last else None, "num_samples": samples,
                    }  # fmt: skip


def certificate_rows(**of):
    """Estimates are twice the deviation, but those of one decoder half of it; one sample is exact."""
    ratio = {"ratio_low": 1.0, "ratio_median": 2.0, "ratio_high": 4.0}
    for spec, factor in (("ujd tau=0.5", 2.0), ("sejd tau=0.5 certify=0.1", 0.5)):
        for sample in range(SAMPLES):
            deviation = 0.0 if sample == 0 else 0.1 / sample
            yield identity(**of) | ratio | {
                "spec": spec, "decoder": spec.split()[0], "sample": sample, "deviation_rmse": deviation,
                "estimate": factor * deviation, "upper": 1.5 * factor * deviation, "polished": "certify" in spec,
                "certificate_rms": 2 * factor * deviation, "certificate_max": 6 * factor * deviation,
            }  # fmt: skip


def probe_row(checkpoint="digits", code="v1"):
    return {
        "cell_id": f"{checkpoint}-{code}",
        "cell_key": checkpoint,
        "probe": "any",
        "checkpoint": checkpoint,
        "code_version": code,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("probes") / "run"
    with RunStore.create(path, {"environment": {"cpu": "a processor", "threads": 1}, **PROBES}) as store:
        store.append("probes", [probe_row()])
        for table, make in {
            "convergence": convergence_rows,
            "fixed_points": end_rows,
            "jacobians": jacobian_rows,
            "redundancy": redundancy_rows,
            "certificates": certificate_rows,
        }.items():
            store.append(table, list(make()))
    (path / "redundancy").mkdir()
    for reading, o, shade in (("attention", 0, 10), ("attention", 2, 90), ("input", 2, 250)):
        Image.new("RGB", (120, 10), (shade,) * 3).save(path / "redundancy" / f"flow_{reading}_o{o:02d}.png")
    return path


def test_a_sample_that_ended_early_stays_at_its_fixed_point(folder):
    rows = guesses.samples(load([folder]))
    counts = rows.groupby([*guesses.KEYS, "iteration"]).size()
    assert set(counts) == {SAMPLES} and rows["iteration"].max() == 15
    held = rows[(rows["sample"] == 3) & (rows["iteration"] > 12)]
    assert (held["error_rms"] == 1e-16).all() and (held["residual"] == 0).all()


def test_medians_and_iterations_to_an_error_are_the_known_ones(folder):
    frame = guesses.data(load([folder]))
    row = frame[(frame["layer"] == 2) & (frame["initial"] == "normal") & (frame["iteration"] == 3)].iloc[0]
    assert row["error"] == pytest.approx(2 * 0.25**3) and row["samples"] == SAMPLES
    needed = guesses.iterations_to(frame, 0.01).set_index(["layer", "initial"])["iterations"]
    assert needed[1, "zeros"] == 7 and needed[1, "normal"] == 8 and needed[1, "input"] == 5 and needed[3, "zeros"] == 2
    assert "layer 1 takes 7 from zeros, 8 from standard normal and 5 from the layer's input" in guesses.finding(frame)
    drawn = [line.get_ydata() for line in guesses.draw(frame).axes[0].lines]
    assert any(np.allclose(np.asarray(y)[:4], [1, 0.5, 0.25, 0.125]) for y in drawn)


def test_powers_of_the_jacobian_are_told_as_they_are(folder):
    frame = jacobian_powers.data(load([folder]))
    told = jacobian_powers.contraction(frame).set_index("layer")
    assert told.loc[1, "norm"] == pytest.approx(3.0) and told.loc[1, "first_below_one"] == 3
    assert (told["vanishes_at"] == TOKENS).all() and told.loc[2, "factor_last"] == pytest.approx(0.25)
    sentence = jacobian_powers.finding(frame)
    assert "from 0.54 (layer 3) to 3 (layer 1)" in sentence and "exactly 0 from t = 16 on" in sentence
    assert len(jacobian_powers.draw(frame).axes) == 2


def test_certificates_are_drawn_against_the_deviation_with_the_band_of_the_calibration(folder):
    frame = certificate.data(load([folder]))
    assert len(frame) == 2 * (SAMPLES - 1)  # exact samples are rounding
    (ax,) = certificate.draw(frame).axes
    points = {tuple(np.round(line.get_ydata() / line.get_xdata(), 6)) for line in ax.lines}
    assert points == {(1.0, 1.0), (2.0,) * 3, (0.5,) * 3}
    corners = ax.collections[0].get_paths()[0].vertices
    assert set(np.round(corners[:, 1] / corners[:, 0], 6)) == {0.5, 2.0}
    sentence = certificate.finding(frame)
    assert "Of 6 samples 50 %" in sentence and "0.5 to 2 times" in sentence and "3 polished ones is 0.1" in sentence


def test_redundancy_has_a_column_per_reading_and_tells_what_leaks(folder):
    frame = redundancy.data(load([folder]))
    assert len(redundancy.draw(frame).axes) == 4 * 2
    sentence = redundancy.finding(frame)
    assert "layer 1 turns most" in sentence and "at most 90 % (attention), 0 % (input)" in sentence


def test_strips_lie_by_reading_and_o(folder):
    frame = redundancy.strips(load([folder]))
    assert frame[["flow", "reading", "o"]].to_numpy().tolist() == [
        ["flow", "attention", 0],
        ["flow", "attention", 2],
        ["flow", "input", 2],
    ]
    axes = redundancy.draw_strips(frame).axes
    shades = [int(ax.images[0].get_array()[0, 0, 0]) if ax.images else None for ax in axes]
    assert shades == [10, None, 90, 250]


def test_of_several_measurements_the_one_of_most_samples_counts(folder, tmp_path):
    with RunStore.create(tmp_path / "few", PROBES) as store:
        store.append("redundancy", list(redundancy_rows(samples=2, shift=-0.5, code="other")))
    for order in ([folder, tmp_path / "few"], [tmp_path / "few", folder]):
        assert (redundancy.data(load(order))["num_samples"] == 8).all()


def test_a_probe_of_older_code_is_left_out(tmp_path):
    with RunStore.create(tmp_path / "run", PROBES) as store:
        for code, shift in (("old", -0.5), ("new", 0.0)):
            store.append("probes", [probe_row(code=code)])
            store.append("redundancy", list(redundancy_rows(shift=shift, code=code)))
    rows = load([tmp_path / "run"]).tables["redundancy"]
    assert set(rows["cell_id"]) == {"digits-new"}


def test_runs_without_probes_say_so(tmp_path):
    runs = load([write_run(tmp_path / "run", only=["timings"], images=False)])
    for plot in (*guesses.PLOTS, *jacobian_powers.PLOTS, *redundancy.PLOTS, *certificate.PLOTS):
        with pytest.raises(Omitted, match="the runs hold no"):
            plot.data(runs)


def test_the_redundancy_study_says_which_reading_fits(folder):
    found = redundancy_study.findings(load([folder]))
    fits = found.tables["fits"].set_index("reading")
    assert fits.loc["attention", ["first_layer", "images"]].tolist() == ["yes", "yes"]
    assert fits.loc["input", ["first_layer", "images"]].tolist() == ["no", "no"]
    assert fits.loc["attention", "times_least"] == pytest.approx(10)
    assert list(found.values["both"]) == ["attention", "input"] and found.values["both"]["attention"] == ["digits"]
    verdicts = {claim.claim: claim.agrees for claim in found.claims}
    assert verdicts == {"redundancy-first-layer": True, "redundancy-images": "undecided"}, "of 8 samples"


def test_the_convergence_study_finds_the_known_rates_and_judges_by_them(folder):
    found = convergence_study.findings(load([folder]))
    orders = found.tables["orders"]
    assert np.allclose(orders["order"], 1) and np.allclose(orders["factor_early"], orders["layer"].map(RATE))
    verdicts = {claim.claim: claim for claim in found.claims}
    assert verdicts["superlinear"].agrees is False  # the rates are constant: linear
    assert verdicts["finite"].agrees is True and verdicts["nilpotent"].agrees is True
    assert verdicts["initial-guess"].agrees is False and "up to 3 iterations" in verdicts["initial-guess"].measured
    assert verdicts["first-layer-iterations"].agrees is True
    names = ("iterations", "orders", "ends")
    iterations, orders, ends = (found.tables[name] for name in names)
    short = ends.assign(cut_short=1, unsettled=1)
    cut = convergence_study._claims("digits", iterations, orders, short, found.rounded["last-bits"])
    assert [claim.claim for claim in cut] == ["initial-guess", "first-layer-iterations"], "no end, no verdict on it"


def test_errors_are_set_against_the_residual_at_which_iteration_stops(folder):
    stops = convergence_study.findings(load([folder])).tables["stops"]
    row = stops[(stops["layer"] == 1) & (stops["initial"] == "zeros") & (stops["tau"] == 0.1)].iloc[0]
    assert row["iterations"] == 4  # the residual of iteration t is 2^-t from zeros
    assert row["error_inf"] == pytest.approx(3 / 16) and row["over_tau"] == pytest.approx(1.875) and row["above"] == 1


@pytest.mark.parametrize("study", ["redundancy", "convergence"])
def test_texts_are_rendered_from_any_tables(folder, tmp_path, study):
    from analysis.studies.render import SHIPPED, render_study

    render_study(SHIPPED / study, "A title", "fast", [folder], tmp_path / "staging", tmp_path / "results")
    text = (tmp_path / "results" / f"{study}.md").read_text(encoding="utf-8")
    assert text.startswith("# A title") and "digits" in text and "nan" not in text
    for figure in set(part.split(")")[0] for part in text.split("](")[1:]):
        assert (tmp_path / "results" / figure).is_file(), figure
