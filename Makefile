# The project's verbs. `make` lists them; each one sets up what it needs. Variables: docs/environment.md.

SCALE ?= tiny
ENGINE ?= auto
SEEDS ?= 1
DEVICE ?=
TORCH_INDEX ?=
RECIPE ?=
MODEL ?=
BENCHMARKS ?=
ARGS ?=
PYTHON ?= python3

export DEVICE TORCH_INDEX
PY = .venv/bin/python
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# --- Variables are checked before any work -------------------------------------------------------------------------

OURS := SCALE ENGINE SEEDS DEVICE TORCH_INDEX RECIPE MODEL BENCHMARKS ARGS PYTHON
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

# $(call need,TARGET,NAME,example): TARGET cannot do without the variable
need = $(if $(filter $1,$(MAKECMDGOALS)),$(if $(strip $($2)),,$(error $1 needs $2, for example: make $1 $3)))
$(call need,train,RECIPE,RECIPE=table3_gpg_rs1)
$(call need,evaluate,MODEL,MODEL=path/to/checkpoint BENCHMARKS=math500)
$(call need,evaluate,BENCHMARKS,MODEL=path/to/checkpoint BENCHMARKS=math500)

# --- Set-up ----------------------------------------------------------------------------------------------------------

.PHONY: help install venv test lint lab recipes train evaluate bench lock clean FORCE

help:
	@echo "usage: make TARGET [SCALE=smoke|tiny|paper] [ENGINE=auto|vllm|transformers] [SEEDS=n] [DEVICE=cpu|gpu]"
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@for target in $(REPRODUCIBLE); do printf '  %-18s %s\n' $$target "run the notebook of that name at SCALE ($(SCALE))"; done

# The interpreter every target uses; quick and silent when nothing changed.
venv:
	@command -v '$(PYTHON)' >/dev/null || { echo "install: '$(PYTHON)' not found; Python 3.11 or 3.12 is needed" >&2; exit 2; }
	@'$(PYTHON)' scripts/install.py $(if $(filter install,$(MAKECMDGOALS)),,--quiet)

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

recipes: venv ## list the training recipes and the table row each serves
	$(PY) -m gpg_repro recipes

train: venv ## train RECIPE=name (see `make recipes`) at SCALE; ARGS="key=value …" overrides
	$(PY) -m gpg_repro train '$(RECIPE)' scale='$(SCALE)' $(ARGS)

evaluate: venv ## measure MODEL=path BENCHMARKS=a,b with ENGINE; ARGS="--samples 4 …" for more
	$(PY) -m eval_harness run --model '$(MODEL)' --benchmarks '$(BENCHMARKS)' --engine '$(ENGINE)' $(ARGS)

bench: venv ## run every benchmark of bench/; each ends in one JSON line with its ratio
	@set -e; for script in bench/[a-z]*.py; do echo "== $$script"; $(PY) "$$script"; done

# --- Work on the code ------------------------------------------------------------------------------------------------

lab: venv ## open the notebooks in JupyterLab, on localhost only (as root: ARGS=--allow-root)
	$(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/notebooks $(ARGS)

lint: venv ## check style, and that notebooks hold no outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(wildcard notebooks/*.ipynb),$(PY) -m nbstripout --verify $(sort $(wildcard notebooks/*.ipynb)))

test: export HF_HUB_OFFLINE = 1
test: lint ## everything: style, tests, and each notebook at smoke scale
	$(PY) -m pytest
	$(PY) -m gpg_repro.notebooks prepare --scale smoke --out build/notebooks
	$(PY) -m pytest --nbval-lax --nbval-current-env build/notebooks

lock: venv ## resolve requirements/*.in into the locks again (needs the package index)
	$(PY) scripts/lock.py

clean: ## remove what builds and tests leave behind; .venv and results/ stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.DEFAULT:
	@$(PYTHON) scripts/suggest.py target '$@' $(shell sed -n 's/^\([a-z][a-z-]*\):[^#]*## .*/\1/p' Makefile) $(REPRODUCIBLE) >&2
	@exit 2
