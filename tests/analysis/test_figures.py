"""What is drawn is what was computed: values read back from the axes, and known truths recovered."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import EXPONENT, ORDER, cells, deviation, iterations, options, residual_rows, wall_s, write_run

from analysis.figures import convergence, memory, order, pareto, redundancy, samples, tau, time_breakdown
from analysis.figures import iterations as iterations_figure
from analysis.figures.files import settle
from analysis.figures.fit import shown
from analysis.figures.plot import Omitted
from analysis.figures.style import decoder_style, log_axis, panels, styles
from analysis.load import load
from analysis.report.page import PLOTS, table1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic")


@pytest.fixture(scope="module")
def runs(folder):
    return load([folder])


def plot(name):
    return next(plot for plot in PLOTS if plot.name == name)


def lines(ax):
    """x to y of every line with markers."""
    return [
        dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in ax.lines if len(line.get_xdata()) > 2
    ]


def test_speedups_are_those_put_in(runs):
    frame = pareto.data(runs, "deviation_rmse")
    truth = {(cell["decoder"], cell["tau"], cell["batch_size"]): cell for cell in cells()}
    base = {cell["batch_size"]: wall_s(cell) for cell in cells() if cell["decoder"] == "sequential"}
    for row in frame[frame["decoder"] != "sequential"].to_dict("records"):
        cell = truth[row["decoder"], row["tau"], row["batch_size"]]
        assert row["speedup"] == pytest.approx(base[row["batch_size"]] / wall_s(cell), rel=0.05)
        assert row["low"] <= row["speedup"] <= row["high"]
        assert row["deviation_rmse"] == deviation(cell)
        up = deviation(cell)  # FID is up by as much, and 5 % of it is the tolerance
        assert row["valid"] == ("undecided" if up == 0.05 else "valid" if up < 0.05 else "invalid")
    assert "18 of 45 cells are beyond the tolerance, 3 undecided" in pareto.finding(frame, "deviation_rmse")


def test_the_points_drawn_are_the_frame_and_invalid_ones_hollow(runs):
    from analysis.figures.style import PAPER

    frame = pareto.data(runs, "deviation_rmse")
    fig = pareto.draw(frame, "deviation_rmse")
    for ax, (_, panel) in zip(fig.axes, frame.groupby("batch_size"), strict=True):
        points = [
            line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("", "None", "_")
        ]
        drawn = {(float(p.get_xdata()[0]), float(p.get_ydata()[0])): p.get_markerfacecolor() == PAPER for p in points}
        wanted = {
            (row["deviation_rmse"], row["speedup"]): row["valid"] == "invalid" for row in panel.to_dict("records")
        }
        assert drawn == wanted


def test_the_front_holds_the_undominated_and_no_invalid_cell():
    cost, gain = np.array([0.0, 0.1, 0.1, 0.2, 0.3]), np.array([1.0, 3.0, 2.0, 3.0, 4.0])
    assert pareto.on_front(cost, gain).tolist() == [True, True, False, False, True]


def test_invalid_cells_are_not_on_the_front(runs):
    frame = pareto.data(runs, "deviation_rmse")
    assert not frame.loc[frame["valid"] == "invalid", "front"].any()
    assert frame["front"].any()


def test_iterations_and_costs_of_the_heat_map(runs):
    frame = iterations_figure.data(runs)
    for row in frame.to_dict("records"):
        cell = {"decoder": row["decoder"], "tau": row["tau"], "num_tokens": 64}
        assert (row["mode"], row["iterations"]) == iterations(cell, row["layer"])
    totals = frame.groupby("title")["fpe"].sum()
    assert totals["sequential"] == pytest.approx(1.0)
    fig = iterations_figure.draw(frame)
    shown = [float(text.get_text()) for text in fig.axes[0].texts]
    assert sorted(shown) == sorted(frame["iterations"])
    assert [bar.get_width() for bar in fig.axes[1].patches] == pytest.approx(
        [totals[title] for title in dict.fromkeys(frame["title"])]
    )


def test_convergence_curves_are_drawn_as_stored(runs):
    frame = convergence.data(runs)
    assert set(frame.dropna(subset=["tau"])["tau"]) == {0.1}
    fig = convergence.draw(frame)
    layer = frame[frame["layer"] == 2]
    drawn = lines(fig.axes[1])
    for title in dict.fromkeys(layer["title"]):
        rows = layer[layer["title"] == title]
        positive = rows["error"].where(rows["error"] > 0)
        assert any(
            list(line) == rows["iteration"].tolist() and np.allclose(list(line.values()), positive, equal_nan=True)
            for line in drawn
        )


def test_long_curves_are_thinned_on_the_logarithmic_axis(tmp_path):
    found = list(cells(tokens=1024, taus=(0.5,), batches=(1,)))
    rows = list(residual_rows(found, iterations_per_layer=1023))
    runs = load([write_run(tmp_path / "run", found, only=(), images=False, residuals=rows)])
    frame = convergence.data(runs)
    per_curve = frame.groupby(["title", "layer"]).size()
    assert len(rows) == 1023 * len(per_curve)
    assert per_curve.max() <= convergence.MAX_POINTS
    assert {1, 1023} <= set(frame["iteration"])


def test_the_known_order_lies_in_most_stated_intervals(runs):
    fitted = order.orders(order.data(runs))
    assert set(fitted["layer"]) == {1, 2, 3, 4}
    inside = fitted["order_low"].le(ORDER) & fitted["order_high"].ge(ORDER)
    assert inside.mean() >= 0.8
    assert fitted["order"].to_numpy() == pytest.approx(ORDER, abs=0.1)
    assert "superlinear" in order.finding(order.data(runs))


def test_the_known_memory_exponents_lie_in_the_stated_intervals(tmp_path):
    found = list(cells(batches=(1, 2, 4, 8, 16, 32), taus=(0.5,)))
    runs = load([write_run(tmp_path / "run", found, images=False)])
    frame = memory.data(runs, "batch_size")
    peaks = frame[frame["measure"] == "decode_bytes"].drop_duplicates("series")
    for row in peaks.to_dict("records"):
        truth = EXPONENT.get(row["decoder"], 1.5)
        assert row["exponent"] == pytest.approx(truth, abs=0.02)
    truth = peaks["decoder"].map(EXPONENT).fillna(1.5)
    assert (peaks["exponent_low"].le(truth) & peaks["exponent_high"].ge(truth)).sum() >= len(peaks) - 1
    caches = frame[(frame["measure"] == "cache_bytes") & (frame["decoder"] == "sejd")]
    assert caches["exponent"].iloc[0] == pytest.approx(1.0)


def test_crossings_are_where_the_lines_meet():
    sizes = np.array([1.0, 4.0, 16.0, 64.0])
    frame = pd.concat(
        pd.DataFrame({"method": "rss", "measure": "decode_bytes", "title": title, "batch_size": sizes, "bytes": values})
        for title, values in (("flat", 10 * sizes), ("steep", sizes**2))
    )
    found = memory.crossings(frame, "batch_size").to_dict("records")
    assert [(row["above"], row["below"]) for row in found] == [("steep", "flat")]
    assert found[0]["at"] == pytest.approx(10)


def test_memory_against_length_takes_flows_of_one_dataset(tmp_path):
    found = [cell for tokens in (64, 256) for cell in cells(tokens=tokens, taus=(0.5,), batches=(4,))]
    runs = load([write_run(tmp_path / "run", found, images=False)])
    frame = memory.data(runs, "num_tokens")
    assert set(frame["num_tokens"]) == {64, 256}
    assert frame["exponent_low"].isna().all()  # two sizes: an exponent, but no interval


def test_weights_are_taken_off_where_the_method_counts_them(tmp_path):
    found = list(cells(taus=(0.5,), batches=(1, 4)))
    rows = [
        {"cell_id": cell["cell_id"], "cell_key": cell["cell_key"], "method": "cuda_allocated", "status": "ok",
         "peak_bytes": 100 + 10 * cell["batch_size"], "weights_bytes": 100, "cache_bytes": 1}
        for cell in found
    ]  # fmt: skip
    frame = memory.data(load([write_run(tmp_path / "run", found, images=False, memory=rows)]), "batch_size")
    peaks = frame[frame["measure"] == "decode_bytes"]
    assert peaks["exponent"].to_numpy() == pytest.approx(1.0)
    assert set(peaks["bytes"]) == {10, 40}


def test_tau_sensitivity_is_the_median_of_the_cells(runs):
    frame = tau.data(runs)
    assert set(frame["batch_size"]) == {16}
    sejd = frame[(frame["decoder"] == "sejd")].set_index("tau")
    assert sejd["deviation_rmse"].to_dict() == {t: 0.08 * t for t in (0.1, 0.3, 0.5, 1.0, 2.0)}
    assert "∝ tau^1" in tau.finding(frame)
    fig = tau.draw(frame)
    assert list(sejd["depth"]) in [list(line.values()) for line in lines(fig.axes[1])]


def test_shares_of_time_add_up_and_bars_end_at_the_total(runs):
    frame = time_breakdown.data(runs)
    assert frame.groupby("title")["share"].sum().to_numpy() == pytest.approx(1.0)
    fig = time_breakdown.draw(frame)
    ends = sorted(round(bar.get_x() + bar.get_width(), 6) for bar in fig.axes[0].patches)
    totals = frame.groupby("title")["wall_s"].sum() * 1e3
    assert all(round(total, 6) in ends for total in totals)
    steps = sum(iterations({"decoder": "sejd", "tau": 0.5, "num_tokens": 64}, layer)[1] for layer in range(1, 5))
    assert f"{63 / steps:.0%}" in time_breakdown.finding(frame)


def test_layers_that_were_timed_beside_others_share_out_the_time_of_the_rounds(runs):
    layers = runs.tables["layers"]
    slowed = replace(runs, tables=runs.tables | {"layers": layers.assign(wall_s=2 * layers["wall_s"])})
    assert time_breakdown.data(slowed)["wall_s"].tolist() == pytest.approx(time_breakdown.data(runs)["wall_s"].tolist())
    none = {"timings": runs.tables["timings"].iloc[:0]}
    once, twice = (
        time_breakdown.data(replace(one, tables=one.tables | none))["wall_s"].sum() for one in (runs, slowed)
    )
    assert twice == pytest.approx(2 * once)


def test_differences_are_measured_in_image_units(runs, folder):
    frame = samples.data(runs)
    assert set(frame["title"]) == {"sequential", "ujd tau 0.5", "sejd tau 0.5", "gs-jacobi tau 0.5"}
    found = frame.set_index("decoder")["rmse"]
    for decoder, scale in (("ujd", 0.08), ("sejd", 0.04), ("gs-jacobi", 0.025)):
        assert found[decoder] == pytest.approx(scale, rel=0.1)
    assert found["sequential"] == 0
    assert "gs-jacobi" in samples.finding(frame).split("nearest")[0]


@pytest.mark.parametrize(("values", "scale"), [([0.0], 0.0), ([0.013], 0.02), ([0.02], 0.02), ([1.7], 2.0)])
def test_the_scale_of_differences_is_a_round_number(values, scale):
    assert samples.difference_scale([np.full((4, 4), value) for value in values]) == pytest.approx(scale)


def test_redundancy_tells_the_layer_that_turns_most(runs):
    frame = redundancy.data(runs)
    assert len(frame) == 12
    assert "layer 1 turns most (cosine similarity 0.5)" in redundancy.finding(frame)
    drawn = lines(redundancy.draw(frame).axes[0])
    assert {1: 0.9, 2: 0.8, 5: 0.5} in [{int(x): round(float(y), 9) for x, y in line.items()} for line in drawn]


def test_table_1_has_a_row_per_cell_and_the_papers_column_only_where_it_speaks(tmp_path):
    found = [*cells(batches=(4,), taus=(0.1, 0.5)), *cells(dataset="cifar10-jpeg", batches=(4,), taus=(0.1, 0.5))]
    frame = table1.data(load([write_run(tmp_path / "run", found, images=False)]))
    assert len(frame) == len(found)
    published = frame[frame["published"] != "–"]
    assert {(row["decoder"], row["published"]) for row in published.to_dict("records")} == {
        ("sequential", "9.56 s, FID 9.71"),
        ("ujd", "3.92 s, 2.4×, FID 10.19"),
        ("sejd", "2.63 s, 3.6×, FID 10.2"),
    }
    assert set(published["dataset"]) == {"cifar10-jpeg"}
    markdown = table1.markdown(frame)
    assert markdown.count("\n|") == len(found) + 1 and "arXiv 2505.24791" in markdown
    latex = table1.latex(frame)
    assert latex.count(r"\\") == len(found) + 1 and not set("×±τ–") & set(latex.split("% Published")[0])


def test_a_cell_that_failed_keeps_its_row_and_says_why(tmp_path):
    found = list(cells(batches=(4,), taus=(0.5,)))
    from synthetic import timing_rows

    rows = [row for row in timing_rows(found) if row["decoder"] != "ujd"]
    rows += [row | {"status": "out-of-memory", "wall_s": None} for row in timing_rows(found) if row["decoder"] == "ujd"]
    frame = table1.data(load([write_run(tmp_path / "run", found, images=False, timings=rows)])).set_index("decoder")
    assert frame.loc["ujd", "time"] == "timings: out-of-memory"
    assert frame.loc["ujd", "speed"] == "–"
    assert "1 of 4 cells did not end well" in table1.finding(frame.reset_index())


def test_options_make_series_of_their_own(tmp_path):
    found = [*cells(batches=(4,), taus=(0.5,))]
    found += [
        cell | {"label": "sejd initial=input", "options": options(initial="input"), "cell_id": "x", "cell_key": "x"}
        for cell in found
        if cell["decoder"] == "sejd"
    ]
    frame = iterations_figure.data(load([write_run(tmp_path / "run", found, images=False)]))
    assert {"sejd tau 0.5", "sejd initial=input tau 0.5"} <= set(frame["title"])


def test_sequential_alone_is_no_frontier(tmp_path):
    runs = load([write_run(tmp_path / "run", list(cells(decoders=("sequential",))), images=False)])
    with pytest.raises(Omitted, match="alone"):
        pareto.data(runs, "fid")


def variants(count):
    """Sequential, and variants of sejd: one description per cell."""
    found = list(cells(batches=(1, 4), taus=(0.1, 0.5), decoders=("sequential", "sejd")))
    names = [f"sejd variant {number}" for number in range(count)]
    return [
        *found,
        *(
            cell | {"label": name, "cell_id": f"{cell['cell_id']}{name}", "cell_key": f"{cell['cell_key']}{name}"}
            for name in names
            for cell in found
            if cell["decoder"] == "sejd"
        ),
    ]  # fmt: skip


def test_thirty_variants_of_a_decoder_are_told_apart_and_the_plain_one_keeps_its_look(tmp_path):
    runs = load([write_run(tmp_path / "run", variants(30), images=False)])
    looks = styles(runs.cells)
    assert len(set(looks.values())) == len(looks) == 32
    assert len({(look.color, look.marker) for look in looks.values()}) == 32, "without their dashes too"
    assert (looks["sejd"], looks["sequential"]) == (decoder_style("sejd"), decoder_style("sequential"))
    drawn = memory.draw(memory.data(runs, "batch_size"), "batch_size")
    seen = {(line.get_color(), line.get_marker()) for line in drawn.axes[0].lines if len(line.get_xdata()) > 1}
    assert len(seen - {(line.get_color(), "None") for line in drawn.axes[0].lines}) == 32


def test_a_crossing_has_the_colour_of_the_line_that_goes_above(tmp_path):
    found = [cell | {"label": "plain " + cell["label"]} for cell in cells(taus=(0.5,), decoders=("ujd", "sejd"))]
    rows = [
        {"cell_id": cell["cell_id"], "cell_key": cell["cell_key"], "method": "rss", "status": "ok", "cache_bytes": 1,
         "peak_bytes": 2**20 * (10 * cell["batch_size"] if cell["decoder"] == "ujd" else 4 * cell["batch_size"] ** 2)}
        for cell in found
    ]  # fmt: skip
    frame = memory.data(load([write_run(tmp_path / "run", found, images=False, memory=rows)]), "batch_size")
    (dotted,) = [line for line in memory.draw(frame, "batch_size").axes[0].lines if line.get_linestyle() == ":"]
    assert dotted.get_color() == decoder_style("sejd").color


def test_names_are_drawn_as_they_are_each_its_own_and_none_too_long():
    names = ["$x^2$", "a\nb", "数", "x" * 112, "x" * 113, "_hidden", "plain"]
    drawn = shown(names)
    assert len(set(drawn.values())) == len(names) and max(map(len, drawn.values())) <= 50
    assert (drawn["$x^2$"], drawn["a\nb"], drawn["数"], drawn["plain"]) == (r"\$x^2\$", "a b", "U+6570", "plain")


def test_a_logarithmic_axis_within_a_decade_has_more_than_one_tick():
    with panels(4, 3) as (_, (ax,), _):
        ax.plot([1, 2], [0.9, 1.3])
        log_axis(ax.yaxis, base=2, unit="×")
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
    assert len(ticks) > 1 and all(text.endswith("×") for text in ax.yaxis.get_major_formatter().format_ticks(ticks))


def test_labels_are_kept_apart_and_long_titles_broken():
    with panels(3, 3) as (fig, (ax,), _):
        ax.plot([1, 2], [1, 2])
        for text in ("1.00", "1.01", "1.02"):
            ax.annotate(text, (2, 2), xytext=(5, 0), textcoords="offset points")
        ax.set(title="a title that is much longer than its axes are wide", xticks=np.linspace(1, 2, 60))
    settle(fig)
    renderer = fig.canvas.get_renderer()
    ticks = [tick.label1 for tick in ax.xaxis.get_major_ticks() if tick.label1.get_visible()]
    for texts in (ax.texts, ticks):
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_visible()]
        assert len(boxes) > 1 and not any(one.overlaps(two) for one, two in zip(boxes, boxes[1:], strict=False))
    assert "\n" in ax.get_title(loc="left")


@pytest.mark.parametrize("count", [2, 40])
def test_a_legend_lies_within_its_picture(count):
    with panels(6, 3) as (fig, (ax,), handles):
        for number in range(count):
            (handles[f"_a name that is as long as names are drawn {number}"],) = ax.plot([1, 2], [1, number])
    settle(fig)
    renderer = fig.canvas.get_renderer()
    box = fig.legends[0].get_window_extent(renderer)
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(handles)
    assert ax.get_window_extent(renderer).height > 100
