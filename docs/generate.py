"""Pages that the code, the tables' definitions and `results/` write: never stored, made again by every build."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

import harness
from analysis.drift import doubts
from analysis.figures.pareto import is_ours
from analysis.summary import summarise, tolerance
from analysis.text import DASH, markdown_table, percent, quantity, speedup
from harness.cli.catalog import catalog, details
from harness.measure.matrix import Matrix
from harness.measure.probes.probe import probes
from harness.runs.store import read_run
from harness.runs.tables import FLOW, IDENTITY
from harness.runs.titles import title

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
STATED = tomllib.loads((ROOT / "harness" / "runs" / "tables.toml").read_text(encoding="utf-8"))


def write(folder: Path) -> None:
    """Write all pages into a folder, which is made anew where something changed."""
    pages = {
        "matrix": matrix_page(),
        "decoders": options_page("decoders", "Decoders"),
        "datasets": options_page("datasets", "Datasets"),
        "probes": options_page("probes", "Probes"),
        "tables": tables_page(),
        "api": api_page(),
        "results": results_page(),
        "fastest": (RESULTS / "fastest.md").read_text(encoding="utf-8"),
        **{f"studies/{path.stem}": study_page(path) for path in sorted((RESULTS / "studies").glob("*.md"))},
        "contributing": repository_page("CONTRIBUTING.md"),
        "changelog": repository_page("CHANGELOG.md"),
        "clusters": repository_page("harness/measure/workers/CLUSTERS.md"),
        "benchmarks": repository_page("benchmarks/README.md"),
    }
    for name, text in pages.items():
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).with_suffix("").as_posix() not in pages:
            path.unlink()


def plain(text: str) -> str:
    """A docstring's text as Markdown."""
    return text.replace("``", "`").replace("<", "&lt;")


# --- what the code takes ---------------------------------------------------------------------------------------------


def options_page(kind: str, title: str) -> str:
    """Everything registered of a kind, each with its options."""
    parts = [f"# {title}\n", f"`harness list {kind} NAME` prints the same, `--json` for programs.\n"]
    shared = _shared_options(kind)
    if shared:
        parts += [f"## Options of all {kind}\n", _options(shared)]
    for entry in catalog(kind)[kind]:
        found = details(kind, entry.name)
        own = [option for option in found["options"] if option not in shared]
        parts += [f"## {entry.name}\n", plain(found["about"]) + "\n", f"`{found['from']}`\n"]
        if "tables" in found:
            parts.append(f"Writes {', '.join(f'[{name}](tables.md#{name})' for name in found['tables'])}.\n")
        parts.append(_options(own) if own else f"No options besides those of all {kind}.\n")
    return "\n".join(parts)


def _shared_options(kind: str) -> list[dict[str, Any]]:
    every = [details(kind, entry.name)["options"] for entry in catalog(kind)[kind]]
    return [option for option in every[0] if all(option in options for options in every)]


def _options(options: list[dict[str, Any]]) -> str:
    lines = [["option", "type", "default", "meaning"]]
    for option in options:
        default = "required" if option["required"] else _value(option["default"])
        lines.append([f"`{option['name']}`", option["type"].replace("<", "&lt;"), default, plain(option["help"])])
    return markdown_table(lines) + "\n"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if value == "":
        return "empty"
    if isinstance(value, dict):
        return "see below"
    value = list(value) if isinstance(value, tuple) else value
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def matrix_page() -> str:
    """Every table of a matrix file, from its JSON schema."""
    schema = Matrix.model_json_schema()
    definitions = schema.pop("$defs")
    parts = [
        "# The matrix\n",
        "A matrix is one TOML file. `harness schema` prints this reference as JSON schema, which editors complete and "
        "check TOML by; a wrong key or value is told by its path before anything is measured.\n",
        plain(schema["description"]) + "\n",
        _keys(schema),
    ]
    titles = {
        "DatasetTable": "An entry of datasets",
        "DecoderTable": "An entry of decoders",
        "Grid": "[grid]",
        "Filter": "An entry of include or exclude",
        "Timing": "[timing]",
        "Quality": "[quality]",
        "Switch": "[memory] and [residuals]",
        "GuidanceTable": "An entry of guidance",
    }
    for name in [*titles, *sorted(set(definitions) - set(titles))]:
        parts += [f"## {titles.get(name, name)}\n", plain(definitions[name]["description"]) + "\n"]
        parts.append(_keys(definitions[name]))
    parts += ["## The shipped matrices\n"]
    parts.append(markdown_table([["name", "what it measures"], *([f"`{one.name}`", one.line] for one in
                                                                 catalog("matrices")["matrices"])]) + "\n")  # fmt: skip
    return "\n".join(parts)


def _keys(table: dict[str, Any]) -> str:
    required = table.get("required", [])
    lines = [["key", "type", "default"]]
    for key, value in table["properties"].items():
        shown = "required" if key in required else _value(value.get("default")) if "default" in value else ""
        lines.append([f"`{key}`", _schema_type(value).replace("<", "&lt;"), shown or "none"])
    return markdown_table(lines) + "\n"


def _schema_type(value: dict[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_schema_type(one) for one in value["anyOf"] if one.get("type") != "null"))
    if "$ref" in value:
        return "table"
    if "enum" in value:
        return ", ".join(map(str, value["enum"]))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
    told = [f"{sign} {value[key]}" for key, sign in bounds.items() if key in value and abs(value[key]) < 2**53]
    if value.get("type") == "array":
        return f"list of {_schema_type(value['items'])}"
    words = {"string": "text", "object": "tables by name", "boolean": "true or false"}
    return " ".join([words.get(value.get("type", ""), value.get("type", "any")), *told])


def tables_page() -> str:
    """Every table of a run folder, column by column."""
    parts = [
        "# Tables\n",
        "A run folder holds `manifest.json` and these tables as Parquet, one folder of parts each, which "
        '`pandas.read_parquet("RUN/timings.parquet")` reads as one. A table is tidy: one row per observation, '
        "snake_case, SI units in the column's name. `cells` describes what was measured; the others join it on "
        "`cell_id`, or on `group_id` where they tell of a whole group. Two runs are joined on `cell_key`, which leaves "
        "the version of the code out.\n",
    ]
    for name, stated in STATED["tables"].items():
        columns = {
            column: facts for part in stated["shares"] for column, facts in STATED["shared"][part].items()
        } | stated["columns"]
        parts += [f"## {name}\n", f"{plain(stated['about'])} A row is told by {_code(stated['key'])}.\n"]
        parts.append(_columns({column: (facts[0], *facts[1:]) for column, facts in columns.items()}))
    parts += [
        "## Tables of probes\n",
        f"Beside these a probe writes its own. Every row begins with {_code([*IDENTITY, *FLOW])}, which are those of "
        "`cells`, and joins the table `probes` on `cell_id`.\n",
    ]
    words = {"string": "text", "int64": "integer", "double": "real", "bool": "flag"}
    for probe, cls in probes.items():
        for table in cls.tables:
            own = {column: kind for column, kind in table.columns.items() if column not in IDENTITY | FLOW}
            about = f"Written by the probe [{probe}](probes.md#{probe}). A row is told by {_code(table.key)}.\n"
            parts += [f"### {table.name}\n", about]
            parts.append(_columns({column: (words[str(kind)],) for column, kind in own.items()}))
    return "\n".join(parts)


def _columns(columns: dict[str, tuple[str, ...]]) -> str:
    lines = [["column", "type", "meaning"]]
    lines += [[f"`{name}`", kind, plain("".join(about))] for name, (kind, *about) in columns.items()]
    if not any(about for *_, about in lines[1:]):
        lines = [line[:2] for line in lines]
    return markdown_table(lines) + "\n"


def _code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def api_page() -> str:
    """What `import harness` offers, from the docstrings."""
    lines = ["# Python\n", "What `import harness` offers; each is loaded when it is first asked for.\n"]
    for name in harness.__all__:
        thing = getattr(harness, name)
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        members = "   :members:\n" if isinstance(thing, type) else ""
        lines.append(f"## {name}\n\n```{{eval-rst}}\n.. {kind}:: harness.{name}\n{members}```\n")
    lines += ["## What they return and take\n"]
    for path in ("harness.decoders.DecodeResult", "harness.decoders.LayerTrace", "harness.flows.CausalFlow"):
        lines.append(f"```{{eval-rst}}\n.. autoclass:: {path}\n   :members:\n```\n")
    return "\n".join(lines)


# --- what was measured -----------------------------------------------------------------------------------------------


def results_page() -> str:
    """Flows x decoders x devices, from every run stored under `results/`."""
    parts = [
        "# Results\n",
        "Every run that is stored in the repository under `results/`: flows, decoders and devices, ours and those of "
        "the papers. A line holds what was measured in one cell; nothing here is typed in. Times are compared only "
        "within one table, where every round decoded the same latents with every decoder. *fwd* is the time in forward "
        "passes of the same batch, *FPE* tokens evaluated over those of one forward pass, *depth* network calls that "
        "follow each other; [how we measure](../explanation/measuring.md) has the rest.\n",
        "See also [which decoder is fastest](fastest.md) and [the paper's claims, one by one](studies/README.md).\n",
    ]
    folders = sorted((RESULTS / "runs").iterdir())
    for folder in (one for one in folders if (one / "manifest.json").is_file()):
        parts += _run(folder)
    return "\n".join(parts)


def _run(folder: Path) -> list[str]:
    run = read_run(folder)
    frame, limits = summarise(run), tolerance(run)
    machine, matrix = run.manifest["environment"], run.manifest["matrix"]
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    features = ", ".join(sorted(frame["fid_features"].dropna().unique()))
    parts = [
        f"## {matrix['name']}, on {device}\n",
        f"{matrix.get('description', '')}. Stored as `results/{folder.relative_to(RESULTS).as_posix()}`. "
        "The numbers rest on:\n",
        f"- {_span(frame['rounds'])} paired rounds a cell; the interval is the 95 % interval of the median ratio to "
        "`sequential`, by order statistics.",
        f"- {_span(frame['num_samples'])} samples a cell for deviation and FID; FID on the features {features}, "
        "against held-out images.",
        f"- Valid is a deviation of at most {limits['max_deviation']:g} and a FID at most "
        f"{percent(limits['max_fid_increase'])} above sequential's; all with 95 % confidence; "
        "a speed-up in brackets is of an invalid cell.",
        f"- torch {machine['packages']['torch']}, Python {machine['python']}, {', '.join(frame['dtype'].unique())}; "
        f"commit `{machine['git']['commit'][:10]}`. Digests of checkpoints and code are in the run's `manifest.json`.",
    ]
    tables = (run.table(name) for name in ("cells", "sentinels", "devices"))
    told = doubts(*tables)
    groups = frame["group_id"].nunique()
    if told:
        summary = f"The machine was not the same throughout in {len(told)} of {groups} groups of paired rounds"
        parts += ["", f"<details><summary>{summary}</summary>", "", *(f"- {plain(doubt)}" for doubt in told)]
        parts += ["", "</details>"]
    parts.append("")
    for (flow, batch), group in frame.groupby(["checkpoint", "batch_size"], sort=True):
        lines = [["decoder", "from", "time (s)", "over sequential", "fwd", "deviation", "FID", "FPE", "depth"]]
        for row in group.sort_values("wall_s").to_dict("records"):
            exact = row["decoder"] == "sequential"
            told = "1" if exact else speedup(*(row[one] for one in ("speedup", "low", "high", "coverage")))
            ours = is_ours(row["decoder"], row["options"])
            numbers = (row[name] for name in ("forward_ratio", "deviation_rmse", "fid", "fpe", "depth"))
            lines.append([
                title(row["label"], row["tau"]), "ours" if ours else "the papers", quantity(row["wall_s"]),
                f"({told})" if row["valid"] == "invalid" else told,
                *(DASH if pd.isna(number) else quantity(number) for number in numbers),
            ])  # fmt: skip
        parts += [
            f"### {matrix['name']}: {flow}, batch {batch}\n",
            "```{rst-class} numbers\n```\n",
            markdown_table(lines) + "\n",
        ]
    return parts


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def study_page(path: Path) -> str:
    """A study's text, its figures read from where they lie."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:)([^)]+\.(?:png|csv))\)", r"](../../../results/studies/\1)", text)
    if path.stem == "README":
        text += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"
    return text


def repository_page(name: str) -> str:
    """A document of the repository; what it links to and is not on this site is named instead."""
    text = re.sub(r"<!-- file: (\S+) -->", r"`\1`:\n", (ROOT / name).read_text(encoding="utf-8"))
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", r"\1 (`\2`)", text)
