# Every target sets up what it needs: `make smoke` and `make test` work on a fresh machine.
#
#   PYTHON=python3.12         the interpreter to build .venv with (3.11 or 3.12)
#   PROFILE=smoke             a profile of pyproject.toml, for render, push and their like
#   ARGS="--set epochs=2"     further options of the command
#   TRAINING_ARGS="--images 128"   options of the second half of `make bench`
#   KERNELKIT_DATA=DIR        a folder that holds the competition's folder; else one is made up

PYTHON ?= python3
PROFILE ?=
ARGS ?=
TRAINING_ARGS ?=

VENV := .venv
KERNELKIT := $(VENV)/bin/kernelkit
OPTIONS = $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)
SYNTHETIC := build/synthetic.done
PEERS := build/bench-venv
INPUTS = $(or $(KERNELKIT_DATA),build/inputs)

.DEFAULT_GOAL := help
.PHONY: setup smoke test lint format render push status watch pull submit doctor emulator bench \
	bench-rendering bench-training faults requirements clean help

setup: $(VENV)/all.done ## install everything: the tool, the workload, the tests

smoke: $(VENV)/all.done $(if $(KERNELKIT_DATA),,$(SYNTHETIC)) ## rehearse src_salt on a local Kaggle
	@$(KERNELKIT) rehearse --profile smoke --inputs "$(INPUTS)" $(ARGS)

test: $(VENV)/all.done ## run the tests
	@$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(VENV)/all.done ## check style and types, change nothing
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(VENV)/all.done ## put style right
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

render: $(VENV)/tool.done ## write the notebook to build/kernel
	@$(KERNELKIT) render $(OPTIONS)

push: $(VENV)/tool.done ## send the notebook to Kaggle: a new version, and its run
	@$(KERNELKIT) push $(OPTIONS)

status: $(VENV)/tool.done ## say where the run is
	@$(KERNELKIT) status $(OPTIONS)

watch: $(VENV)/tool.done ## follow the run; Ctrl-C leaves it running
	@$(KERNELKIT) watch $(OPTIONS)

pull: $(VENV)/tool.done ## wait for the run's end, download and verify what it left
	@$(KERNELKIT) pull $(OPTIONS)

submit: $(VENV)/tool.done ## enter submission.csv of a verified run
	@$(KERNELKIT) submit $(OPTIONS)

doctor: $(VENV)/tool.done ## look at this machine, the account and the project
	@$(KERNELKIT) doctor $(OPTIONS)

emulator: $(VENV)/all.done $(if $(KERNELKIT_DATA),,$(SYNTHETIC)) ## serve a local Kaggle until stopped
	@$(KERNELKIT) emulator --inputs "$(INPUTS)" $(ARGS)

bench: bench-rendering ## both of the next two; ARGS is for the first, TRAINING_ARGS for the second
	@$(MAKE) --no-print-directory bench-training ARGS="$(TRAINING_ARGS)"

bench-rendering: $(VENV)/all.done ## measure rendering beside its peers: time, memory, whose result runs
	@$(MAKE) --no-print-directory --silent $(PEERS)/all.done || echo "without the peers" >&2
	@$(VENV)/bin/python -m benchmarks --peers $(PEERS)/bin/python $(ARGS)

bench-training: $(VENV)/all.done ## measure training and prediction on this device, the seed's path and ours
	@$(VENV)/bin/python -m benchmarks.training $(ARGS)

faults: $(VENV)/all.done ## run the chaos tests: kernelkit against a local Kaggle with faults
	@$(VENV)/bin/python -m tests.chaos $(ARGS)

requirements: $(VENV)/uv.done ## resolve the pinned versions anew from pyproject.toml
	@$(RESOLVE) --all-extras --group dev -o requirements/all.txt
	@$(RESOLVE) --constraint requirements/all.txt -o requirements/tool.txt
	@echo uv | $(RESOLVE_FILE) - -o requirements/uv.txt

clean: ## remove what was built; runs/ stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

help: ## print this list
	@echo "make TARGET — on a fresh machine begin with: make smoke, make test"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

# One resolution for Linux and macOS; hashes, and no address of an index.
RESOLVE_FILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-annotate
RESOLVE = $(RESOLVE_FILE) pyproject.toml
# Compiled once, here: where Python may not keep what it compiles, every process would do it anew.
INSTALL = $(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python

# NumPy 2.0 and pandas 2.2.2, which the image has, know no later Python.
OTHER_PYTHON = "The image\047s libraries need Python 3.11 or 3.12, $(VENV) has another. Remove $(VENV), then name one: make PYTHON=python3.12 …"

$(VENV)/uv.done: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit("kernelkit needs Python 3.11 or later: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/tool.done: requirements/tool.txt $(VENV)/uv.done
	@$(INSTALL) --require-hashes -r requirements/tool.txt
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/all.done: requirements/all.txt $(VENV)/tool.done
	@$(VENV)/bin/python -c 'import sys; sys.exit($(OTHER_PYTHON) if sys.version_info[:2] not in ((3, 11), (3, 12)) else 0)'
	@echo "installing the workload's libraries, PyTorch among them: about a minute, and 7 GB"
	@$(INSTALL) --require-hashes -r requirements/all.txt
	@touch $@

$(PEERS)/all.done: benchmarks/requirements.txt | $(VENV)/uv.done
	@$(VENV)/bin/python -m venv --clear $(PEERS)
	@$(VENV)/bin/uv pip install --quiet --python $(PEERS)/bin/python -r $<
	@touch $@

$(SYNTHETIC): src_salt/synthetic.py | $(VENV)/all.done
	@$(VENV)/bin/python -m src_salt.synthetic build/inputs/tgs-salt-identification-challenge \
		--train 160 --test 40
	@touch $@
