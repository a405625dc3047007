# The project's verbs. `make` lists them; each one sets up what it needs. Variables: docs/environment.md.

SCALE ?= tiny
ENGINE ?= auto
SEEDS ?= 1
DEVICE ?=
TORCH_INDEX ?=
RECIPE ?=
RUN ?=
TABLE ?=
MODEL ?=
BENCHMARKS ?=
SAMPLES ?= auto
MINUTES ?= 30
ARGS ?=
PYTHON ?= python3

export DEVICE TORCH_INDEX
PY = .venv/bin/python
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# --- Variables are checked before any work -------------------------------------------------------------------------

OURS := SCALE ENGINE SEEDS DEVICE TORCH_INDEX RECIPE RUN TABLE MODEL BENCHMARKS SAMPLES MINUTES ARGS PYTHON
PASSED_ON := SHELL EVAL_DATA_ROOT EVAL_IMAGE_ROOT HF_% PIP_% VLLM_% CUDA_% OMP_% TMPDIR
from_command_line = $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
unknown := $(filter-out $(OURS) $(PASSED_ON),$(from_command_line))
ifneq ($(unknown),)
$(error $(shell $(PYTHON) scripts/suggest.py variable '$(firstword $(unknown))' $(OURS)))
endif

# $(call one_of,NAME,allowed values)
one_of = $(if $(filter-out 1,$(words $($1)))$(filter-out $2,$($1)),$(error $1=$($1) is unknown; use one of: $2))
$(call one_of,SCALE,smoke tiny paper)
$(call one_of,ENGINE,auto vllm transformers)
$(if $(strip $(DEVICE)),$(call one_of,DEVICE,cpu gpu))
ifneq ($(shell printf '%s' '$(SEEDS)' | grep -Ec '^(0|[1-9][0-9]*)$$'),1)
$(error SEEDS=$(SEEDS) is not a number of seeds; use 1, 2, 3, … to train so many, 0 to show the committed records)
endif
ifneq ($(shell printf '%s' '$(MINUTES)' | grep -Ec '^[1-9][0-9]*$$'),1)
$(error MINUTES=$(MINUTES) is not a number of minutes; use 1, 2, 3, …)
endif

# $(call need,TARGET,NAME,example): TARGET cannot do without the variable
need = $(if $(filter $1,$(MAKECMDGOALS)),$(if $(strip $($2)),,$(error $1 needs $2, for example: make $1 $3)))
$(call need,train,RECIPE,RECIPE=table3_gpg_rs1)
$(call need,plan,TABLE,TABLE=table3)
ifeq ($(strip $(RUN)),)
$(call need,evaluate,MODEL,MODEL=path/to/checkpoint BENCHMARKS=math500)
$(call need,evaluate,BENCHMARKS,MODEL=path/to/checkpoint BENCHMARKS=math500)
else ifneq ($(strip $(MODEL)),)
$(error evaluate takes MODEL (one checkpoint) or RUN (every checkpoint of a training run), not both)
endif

# --- Set-up ----------------------------------------------------------------------------------------------------------

.PHONY: help install venv test test-gpu test-quick test-long test-all test-fuzz test-torture notebooks-on-text notebooks-on-pictures test-verl test-newest test-pythons mutate fuzz torture audit-deps lint lab recipes plan train evaluate evaluate-released audit controls report reproduce-all \
  bench lock clean FORCE

help:
	@echo "usage: make TARGET [SCALE=smoke|tiny|paper] [ENGINE=auto|vllm|transformers] [SEEDS=n] [DEVICE=cpu|gpu]"
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@for target in $(REPRODUCIBLE); do printf '  %-18s %s\n' $$target "run the notebook of that name at SCALE ($(SCALE))"; done

# The interpreter every target uses; quick and silent when nothing changed. Without PYTHON, .venv keeps the one it has.
venv:
	@command -v '$(PYTHON)' >/dev/null || { echo "install: '$(PYTHON)' not found; Python 3.11, 3.12 or 3.13 is needed" >&2; exit 2; }
	@'$(PYTHON)' scripts/install.py $(if $(filter install,$(MAKECMDGOALS)),,--quiet) $(if $(filter file,$(origin PYTHON)),--keep-python)

install: venv ## make .venv: the GPU set when an NVIDIA GPU is visible, else the CPU set

# --- The paper -------------------------------------------------------------------------------------------------------

# table_03.ipynb -> reproduce-table3, figure_1.ipynb -> reproduce-figure1
TABLES := $(patsubst 0%,%,$(patsubst notebooks/table_%.ipynb,%,$(sort $(wildcard notebooks/table_*.ipynb))))
FIGURES := $(patsubst notebooks/figure_%.ipynb,%,$(sort $(wildcard notebooks/figure_*.ipynb)))
REPRODUCIBLE := $(addprefix reproduce-table,$(TABLES)) $(addprefix reproduce-figure,$(FIGURES))
run_notebook = $(PY) -m gpg_repro.notebooks run $1 --parameters SCALE='$(SCALE)' ENGINE='$(ENGINE)' SEEDS='$(SEEDS)'

$(addprefix reproduce-table,$(TABLES)): reproduce-table%: venv
	$(call run_notebook,notebooks/table_$(if $(filter 1 2 3 4 5 6 7 8 9,$*),0)$*.ipynb)

$(addprefix reproduce-figure,$(FIGURES)): reproduce-figure%: venv
	$(call run_notebook,notebooks/figure_$*.ipynb)

reproduce-%: FORCE
	@echo "make: there is no notebook behind '$@' yet; these exist: $(or $(strip $(REPRODUCIBLE)),none)" >&2; exit 2

# One after the other; `make -k reproduce-all` goes on after one that failed.
reproduce-all: $(REPRODUCIBLE) ## every table and figure at SCALE, one after the other

audit: venv ## check the paper's printed numbers against each other: results/tables/paper_audit.*
	$(PY) -m gpg_repro audit $(ARGS)

controls: venv ## prompt sensitivity and old against new questions at SCALE (notebook 06)
	$(PY) -m gpg_repro.notebooks run notebooks/06_controls.ipynb --parameters SCALE='$(SCALE)' ENGINE='$(ENGINE)'

report: venv ## the static site of tables, figures, records and docs: build/report/index.html
	$(PY) -m gpg_repro report --scale '$(SCALE)' $(ARGS)

recipes: venv ## list the training recipes and the table row each serves
	$(PY) -m gpg_repro recipes

plan: venv ## what TABLE=table3 needs at SCALE (default: paper), what is done, what the rest would cost; ARGS="--gpu a100 …"
	$(PY) -m gpg_repro plan '$(TABLE)' --scale '$(if $(filter file,$(origin SCALE)),paper,$(SCALE))' $(ARGS)

train: venv ## train RECIPE=name (see `make recipes`) at SCALE; ARGS="key=value …" overrides
	$(PY) -m gpg_repro train '$(RECIPE)' scale='$(SCALE)' $(ARGS)

# avg@K with the single sample of the paper beside it; the checkpoints of a run share their table's samples unless asked
samples = $(if $(and $(strip $(RUN)),$(filter file,$(origin SAMPLES))),,--samples '$(SAMPLES)')

evaluate: venv ## measure MODEL=path BENCHMARKS=a,b, or every checkpoint of a training RUN=folder; SAMPLES=1: one an item
	$(PY) -m $(if $(strip $(RUN)),gpg_repro evaluate '$(RUN)',eval_harness run --model '$(MODEL)')$(if \
	  $(strip $(BENCHMARKS)), --benchmarks '$(BENCHMARKS)') --engine '$(ENGINE)' $(samples) $(ARGS)

evaluate-released: venv ## measure the released checkpoints (TABLE=3, TABLE=4, MODEL=id,id: only those) beside their printed rows
	$(PY) -m eval_harness released --engine '$(ENGINE)' $(samples)$(if $(strip $(TABLE)), --table '$(TABLE)')$(if \
	  $(strip $(MODEL)), --only '$(MODEL)')$(if $(strip $(BENCHMARKS)), --benchmarks '$(BENCHMARKS)') $(ARGS)

bench: venv ## run every benchmark of bench/; each ends in one JSON line with its ratio
	@set -e; for script in bench/[a-z]*.py; do echo "== $$script"; $(PY) "$$script"; done

# --- Work on the code ------------------------------------------------------------------------------------------------

lab: venv ## open the notebooks in JupyterLab, on localhost only (as root: ARGS=--allow-root)
	$(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/notebooks $(ARGS)

lint: venv ## check style, and that notebooks hold no outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(wildcard notebooks/*.ipynb),$(PY) -m nbstripout --verify $(sort $(wildcard notebooks/*.ipynb)))

# Three tiers (tests/tiers.py), each on two processes. What fails beside others (deadlines on a busy machine) must pass
# alone, and the log shows both.
test test-quick test-long: export HF_HUB_OFFLINE = 1
test test-quick test-long: export OMP_NUM_THREADS = 1
define run_tier
	$(PY) -m pytest --tier $1 --numprocesses 2 --dist loadfile --durations 20 $(ARGS) \
	  || $(PY) -m pytest --last-failed --last-failed-no-failures none
endef

test-quick: venv ## what to run while editing: no engine, no torchrun, no notebook (two minutes)
	$(PY) -m pytest --tier quick --numprocesses 2 --dist loadfile --durations 5 $(ARGS)

# Notebooks whose engine is vLLM where it is installed: one on text, one on pictures.
WITH_VLLM = table_03 table_07

test: lint ## everything a change can break: style, engines, a server, two processes, each notebook at smoke scale
	$(call run_tier,full)
	$(PY) -m gpg_repro.notebooks prepare --scale smoke --out build/notebooks --engine transformers --auto $(WITH_VLLM)
	@mkdir -p build/notebooks; $(MAKE) notebooks-on-pictures > build/notebooks/pictures.log 2>&1 & beside=$$!; $(MAKE) notebooks-on-text; text=$$?; \
	  wait $$beside; pictures=$$?; cat build/notebooks/pictures.log; exit $$((text + pictures))

# Two groups that share no run, side by side: a run has one writer.
ON_PICTURES = $(wildcard build/notebooks/figure_1.ipynb build/notebooks/table_0[5-8].ipynb)
check_notebooks = PYTHONPATH=tests $(PY) -m pytest -p notebook_kernels -p no:cacheprovider --durations 20 --nbval-lax --nbval-current-env

notebooks-on-pictures:
	$(check_notebooks) $(ON_PICTURES)

notebooks-on-text:
	$(check_notebooks) $(filter-out $(ON_PICTURES),$(wildcard build/notebooks/*.ipynb))

# Its file needs nothing of tests/conftest.py, so that it runs on a machine with torch, transformers and TRL alone.
test-gpu: venv ## kernels, half precision and memory on an NVIDIA GPU (five minutes); one line where there is none
	@if $(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(PY) -m pytest --confcutdir tests/gpu tests/gpu $(ARGS); \
	else echo "test-gpu: torch finds no NVIDIA GPU here; nothing was tested" >&2; fi

test-long: venv ## the tests that `make test` leaves out: whole matrices, the real benchmark files, short fuzz and torture
	$(call run_tier,long)

test-all: ## all tiers, verl, a shortened fuzz and torture, and the quick tier on every Python of this machine
	@$(MAKE) test
	@$(MAKE) $(BEYOND_TEST)

# What `make test-all` has beside `make test`; .ci/run takes them in this order while there is time.
BEYOND_TEST = test-long test-verl test-fuzz test-torture test-pythons

test-fuzz: ARGS = --inputs 20000
test-fuzz: fuzz

test-torture: ARGS = --short --kills 5
test-torture: torture

# verl lies beside .venv, where its own tests alone see it. The stamp comes last: a fetch that was cut short starts anew.
# verl 0.9.1 declares Python < 3.13; what the tests need of it works there too.
VERL = build/verl/complete

.venv/pyvenv.cfg: | venv ;

$(VERL): requirements/verl.txt .venv/pyvenv.cfg
	rm -rf build/verl
	$(PY) -m pip install --quiet --no-input --no-deps --only-binary :all: --ignore-requires-python --target build/verl --requirement $< \
	  && touch $@ || test -z "$$CI"

test-verl: export HF_HUB_OFFLINE = 1
test-verl: venv $(VERL) ## fetch verl into build/verl and run the tests against its code
	@if test -e $(VERL); then PYTHONPATH='$(CURDIR)/build/verl' $(PY) -m pytest tests/test_verl.py; \
	else echo "test-verl: verl could not be fetched (see above); the tests against its code were SKIPPED" >&2; fi

fuzz: venv ## 100,000 drawn inputs through every grader, parser and reward (10 to 20 minutes); ARGS="--inputs 5000 --seed 1 …"
	$(PY) -m eval_harness.fuzz --corpus tests/cases/hostile.json --also gpg_repro.fuzzing $(ARGS)

torture: venv ## kill an evaluation, a training and a notebook 30 times each and resume them; ARGS="evaluation --kills 5 …"
	$(PY) tests/torture $(ARGS)

mutate: venv ## change the code a little and see whether a test notices, for MINUTES=30; ARGS="--seed 1 --only stats …"
	$(PY) scripts/mutate.py --minutes '$(MINUTES)' $(ARGS)

audit-deps: venv ## known vulnerabilities of the locked packages, against requirements/accepted_findings.toml
	$(PY) scripts/audit_deps.py $(ARGS)

test-newest: venv ## the tests against the newest TRL, transformers and vLLM that the ranges allow; ARGS="--beyond --all …"
	$(PY) scripts/test_newest.py $(ARGS)

test-pythons: venv ## the quick tests under each other supported Python of this machine; ARGS="-k stats …" for pytest
	$(PY) scripts/test_pythons.py $(ARGS)

lock: venv ## resolve requirements/*.in into the locks again (needs the package index)
	$(PY) scripts/lock.py

clean: ## remove what builds and tests leave behind; .venv and results/ stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.DEFAULT:
	@$(PYTHON) scripts/suggest.py target '$@' $(shell sed -n 's/^\([a-z][a-z-]*\):[^#]*## .*/\1/p' Makefile) $(REPRODUCIBLE) >&2
	@exit 2
