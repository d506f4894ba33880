'''Studies: the paper's claims and open questions, each a plan that is measured and a text that is rendered from it.

A study NAME consists of

* ``analysis/studies/NAME/plan.toml``: what is measured, the committed commands as data;
* ``analysis/studies/NAME/findings.py``: a function ``findings(runs)`` that turns the tables into numbers, figures and verdicts
  (analysis never runs a model and never imports torch);
* ``analysis/studies/NAME/text.md.j2``: the text, a Jinja template. No number is typed in it: all come from the tables.

``harness study NAME`` (or ``all``) measures what is missing in-process, through `run_matrix` and
`run_probe`, into ``OUT/NAME/RUN``, then writes ``results/studies/NAME.md``, ``NAME/*.csv``, ``NAME/*.png`` and the claim table ``results/studies/README.md``. ``make studies`` does so for all and compares (``--check``).

The plan: as many ``[[run]]`` and ``[[probe]]`` as are needed, each with a name of its own, the folder. A profile of
the study, ``fast`` or ``full``, overrides keys of each; ``fast`` of all studies together stays under 45 minutes on two
cores. `reads` names studies whose runs this text rests on too. ::

    title = "Iterations against depth"
    reads = ["tau"]                      # its run folders are handed over with this study's own

    [[run]]                              # a matrix written here, in the words of harness/matrices/*.toml
    name = "digits"
    [run.matrix]
    datasets = [{ name = "digits" }]
    decoders = [{ name = "sequential" }, { name = "sejd" }]
    grid = { tau = [0.5], batch_sizes = [16] }
    timing = { rounds = 20 }
    memory = { enabled = false }
    [run.profiles.fast]
    timing = { rounds = 5 }
    quality = { num_samples = 256 }

    [[run]]                              # or a shipped one, by name, with some keys set
    name = "cats"
    matrix = "afhq"
    set = { grid = { tau = [0.1], batch_sizes = [1] } }

    [[probe]]                            # `harness probe convergence digits`, its options as keywords
    name = "digits-convergence"
    probe = "convergence"
    flow = "digits"
    options = { samples = 16 }
    [probe.profiles.fast]
    samples = 4

The module: `runs` is an `analysis.load.Runs`, the merged tables of all run folders (``runs.joined("layers")``,
``runs.speedups``, ``runs.cells``; ``runs.runs`` tells the folders apart by ``run.path.name``). ::

    from analysis.load import Runs
    from analysis.studies import Finding, Findings

    def findings(runs: Runs) -> Findings:
        """Iterations of every layer."""
        layers = runs.joined("layers")
        frame = layers[["flow", "series", "tau", "layer", "iterations"]]
        most = frame["iterations"].max()
        return Findings(
            tables={"iterations": frame},                # NAME/iterations.csv: deterministic, compared by --check
            timed={"speed": runs.speedups},              # NAME/speed-timed.csv: wall times, measured memory
            figures={"iterations": draw(frame)},         # NAME/iterations.png, drawn in `analysis.style.theme`
            values={"most": most},                       # further values for the template
            claims=(
                Finding(
                    claim="few-iterations",              # an id of analysis/studies/claims.toml
                    flow="digits",
                    measured=f"at most {most:g} iterations",
                    agrees=bool(most <= 6),              # None: cannot be measured here; `criterion` says why
                    criterion="every layer after the first takes at most 6",
                    timed=False,                         # True where clocks or measured bytes decide
                ),
            ),
        )

The template sees ``title``, ``name``, ``profile``, ``tables``, ``timed`` (frames), ``values``, ``claims``,
``machine`` (where the runs were made) and ``figure(name, caption)``, and the filters `quantity`, `times`, `percent`,
`listing`, `markdown` (a frame as a table, with its headings) and `pick` (the one row with these values). Timed numbers
stand in a section of their own that names the machine. ::

    # {{ title }}

    {% set row = tables.iterations | pick(flow="digits", tau=0.5, layer=2) %}
    Layer 2 takes {{ row.iterations | quantity }} iterations.

    {{ tables.iterations | markdown({"layer": "layer", "iterations": "iterations"}) }}

    {{ figure("iterations", "Iterations of every layer") }}

    ## Measured on {{ machine }}

    {{ timed.speed | markdown }}

The claim table has one row for each claim, limitation and open question in ``analysis/studies/claims.toml``; a study
answers a row by a `Finding` with its id, one for each flow. A claim that is missing there is added there.
'''

from harness.measure.studies.execute import execute
from harness.measure.studies.plan import PROFILES, StudyPlan, load_plan, plans, studies

__all__ = ["PROFILES", "StudyPlan", "execute", "load_plan", "plans", "studies"]
