# Every target but `gpu` sets up .venv by itself; nothing but Python 3.11 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= runs/quickstart
PROFILE ?= fast
STUDIES ?= runs/studies
BASE ?= results/baselines/asv.json
OUT ?= runs/gpu
SECONDS_TOTAL ?= 480

.PHONY: demo test test-slow test-gpu gpu fuzz test-faults lint report results fastest figures studies training-flows docs format bench \
	bench-compare clean

demo: $(READY)  ## measure the shipped digits flow, print the table, render the report
	$(BIN)/harness run quickstart --out $(RUN) --resume
	$(BIN)/harness report $(RUN)

test: $(READY)  ## the default suite: no GPU, under ten minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses logical --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(READY)  ## what a card decodes, measures, fits and trains; the same tests run without one in `make test`
	$(BIN)/python -m pytest tests/gpu -m gpu

gpu:  ## all that a card is needed for, in SECONDS_TOTAL seconds with the interpreter PYTHON: benchmarks/README.md
	$(PYTHON) -m benchmarks.gpu --out "$(OUT)" --seconds $(SECONDS_TOTAL) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
		$(if $(PEERS),--peers "$(PEERS)") $(if $(filter cpu,$(DEVICE)),--device cpu --tiny)

fuzz: $(READY)  ## ten minutes of hostile input to everything that reads; prints its seed, SEED= repeats one
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[fuzz]"
	$(BIN)/python tests/fuzz/fuzz_run.py --seconds 600 $(if $(SEED),--seed $(SEED))

test-faults: $(READY)  ## a hundred kills at random moments; HARNESS_SEED= and HARNESS_KILLS= are taken from outside
	$(BIN)/python -m pytest tests/faults -m slow -s

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: $(READY)
	$(BIN)/harness report $(RUN)

results: $(READY)  ## all that is stored under results/ again, at one commit; STAGES= some of it, DRY=1 only how long
	$(BIN)/python -m benchmarks.results $(STAGES) $(if $(DRY),--dry-run)

figures: $(READY)  ## figures, report, results/fastest.md and the README's parts again, from the runs stored under results/
	$(BIN)/python -m benchmarks.results texts

studies: $(READY)  ## the paper's claims measured from the shipped flows; fails where a deterministic number is not as stored
	$(BIN)/harness study all --profile $(PROFILE) --out $(STUDIES) --resume --check

training-flows: $(READY)  ## the flows of the study `training` again, some minutes each: runs/training; SEEDS= says which
	set -f; for seed in $(or $(SEEDS),0 1); do while read -r name config settings; do \
		$(BIN)/harness train $$config $$(printf -- '--set %s ' $$settings) --seed $$seed --resume \
			--out runs/training/$$name-s$$seed < /dev/null || exit; \
	done < results/studies/training/flows/trainings.txt; done

fastest: $(READY)  ## every decoder on every shipped flow; results/fastest.md says which is fastest at which deviation
	$(BIN)/python -m benchmarks.results fastest texts

docs: $(READY)  ## the site, in docs/_build/html/index.html: no network is needed to build it or to read it
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	@echo "the site is docs/_build/html/index.html"

bench: $(READY)  ## asv in this environment, stored by commit under .asv; PROFILE= takes the whole matrix
	$(BIN)/asv machine --yes
	HARNESS_BENCH_PROFILE=$(PROFILE) $(BIN)/asv run --environment existing:same --record-samples \
		--set-commit-hash $$(git rev-parse HEAD)

bench-compare: $(READY)  ## the stored results of this commit against BASE, a commit or a file; fails on a regression
	$(BIN)/harness bench-compare $(BASE)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,bench,zuko]"
	touch $@

clean:
	rm -rf $(VENV) runs
