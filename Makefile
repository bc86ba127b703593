# Every target installs what it needs: `make smoke` and `make test` work on a fresh machine.
#
#   PYTHON=python3.12              Python interpreter for .venv (3.11 or 3.12)
#   PROFILE=smoke                  profile from pyproject.toml, for render, push, run and others
#   WEIGHTS=ann/resnet-weights     Kaggle dataset or model with pretrained weights: the run then
#                                  needs no internet (make weights publishes one)
#   ARGS="--set epochs=2"          extra options for the command
#   TRAINING_ARGS="--images 128"   extra options for the training half of `make bench`
#   KERNELKIT_DATA=DIR             folder that contains the competition's folder; if it is not set,
#                                  the targets that need data generate a synthetic competition

PYTHON ?= python3
PROFILE ?=
WEIGHTS ?=
ARGS ?=
TRAINING_ARGS ?=

VENV := .venv
KERNELKIT := $(VENV)/bin/kernelkit
# Four workers also on two cores: many tests wait for another process.
PYTEST := $(VENV)/bin/python -m pytest -n 4 --dist worksteal
OPTIONS = $(if $(PROFILE),--profile $(PROFILE)) $(OFFLINE) $(ARGS)
# The dataset owner/slug, or the model owner/model/framework/instance/version.
WEIGHTS_PARTS = $(subst /, ,$(WEIGHTS))
WEIGHTS_KIND = $(if $(word 4,$(WEIGHTS_PARTS)),model,dataset)_sources
OFFLINE = $(if $(WEIGHTS),--set kernel.enable_internet=false \
	--set 'kernel.$(WEIGHTS_KIND)=["$(WEIGHTS)"]' --set pretrained=true \
	--set weights_dir=kaggle://input/$(word 2,$(WEIGHTS_PARTS)))
SYNTHETIC := build/synthetic.done
PEERS := build/bench-venv
DOCS := build/docs-venv
INPUTS = $(or $(KERNELKIT_DATA),build/inputs)
RESNET_WEIGHTS = tgs-resnet-weights

# Next steps that kernelkit prints then name these targets, as in `make watch`.
export KERNELKIT_MAKE := render push run status watch logs pull diagnose runs submit doctor

.DEFAULT_GOAL := help
.PHONY: setup smoke weights test test-all lint format render push run status watch logs pull \
	diagnose runs submit doctor emulator docs bench bench-rendering bench-training bench-gpu \
	bench-startup bench-sweep environments faults requirements clean help

setup: $(VENV)/all.done ## install kernelkit, the workload and the test tools

smoke: $(VENV)/all.done $(if $(KERNELKIT_DATA),,$(SYNTHETIC)) ## rehearse src_salt on a local Kaggle
	@$(KERNELKIT) rehearse --profile smoke --inputs "$(INPUTS)" $(OFFLINE) $(ARGS)

weights: $(VENV)/all.done ## publish ImageNet weights for runs without internet
	@$(VENV)/bin/python -m src_salt.weights build/inputs/$(RESNET_WEIGHTS)
	@$(KERNELKIT) dataset push build/inputs/$(RESNET_WEIGHTS) --slug $(RESNET_WEIGHTS) $(ARGS)

test: $(VENV)/all.done ## run all tests that are not marked slow
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/all.done ## run all tests
	@$(PYTEST) $(ARGS)

lint: $(VENV)/all.done ## check style and types without changing files
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: $(VENV)/all.done ## fix style
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

render: $(VENV)/tool.done ## write the notebook to build/kernel
	@$(KERNELKIT) render $(OPTIONS)

push: $(VENV)/tool.done ## push the notebook to Kaggle and start its run
	@$(KERNELKIT) push $(OPTIONS)

run: $(VENV)/tool.done ## push, watch, pull and verify
	@$(KERNELKIT) run $(OPTIONS)

status: $(VENV)/tool.done ## print the state of the latest run
	@$(KERNELKIT) status $(OPTIONS)

watch: $(VENV)/tool.done ## follow the latest run; Ctrl-C does not stop it
	@$(KERNELKIT) watch $(OPTIONS)

logs: $(VENV)/tool.done ## print the log of the latest run
	@$(KERNELKIT) logs $(OPTIONS)

pull: $(VENV)/tool.done ## download and verify the outputs of the latest run
	@$(KERNELKIT) pull $(OPTIONS)

diagnose: $(VENV)/tool.done ## explain why the latest run failed
	@$(KERNELKIT) diagnose $(OPTIONS)

runs: $(VENV)/tool.done ## list all runs
	@$(KERNELKIT) runs $(ARGS)

submit: $(VENV)/tool.done ## submit submission.csv of a verified run
	@$(KERNELKIT) submit $(OPTIONS)

doctor: $(VENV)/tool.done ## check this machine, the account and the project
	@$(KERNELKIT) doctor $(OPTIONS)

emulator: $(VENV)/all.done $(if $(KERNELKIT_DATA),,$(SYNTHETIC)) ## serve a local Kaggle until stopped
	@$(KERNELKIT) emulator --inputs "$(INPUTS)" $(ARGS)

docs: $(DOCS)/all.done ## build the documentation in build/site
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo "to read it: $(VENV)/bin/python -m http.server -b 127.0.0.1 -d build/site"

bench: bench-rendering ## run the rendering and training benchmarks
	@$(MAKE) --no-print-directory bench-training ARGS="$(TRAINING_ARGS)"

bench-rendering: $(VENV)/all.done ## compare rendering with stickytape and repo2nb
	@$(MAKE) --no-print-directory --silent $(PEERS)/all.done || \
		echo "stickytape and repo2nb cannot be installed: measuring kernelkit alone" >&2
	@$(VENV)/bin/python -m benchmarks --peers $(PEERS)/bin/python $(ARGS)

bench-training: $(VENV)/all.done ## measure training and prediction on this device
	@$(VENV)/bin/python -m benchmarks.training $(ARGS)

bench-gpu: $(VENV)/all.done ## measure src_salt on a GPU next to a plain loop, in 8 minutes
	@$(MAKE) --no-print-directory --silent $(PEERS)/all.done || \
		echo "segmentation_models_pytorch cannot be installed: measuring src_salt alone" >&2
	@$(VENV)/bin/python -m benchmarks.gpu --peers $(PEERS)/bin/python \
		$(if $(KERNELKIT_DATA),--data "$(KERNELKIT_DATA)") $(ARGS)

bench-startup: $(VENV)/all.done ## measure the start-up time of the command line
	@$(VENV)/bin/python -m benchmarks.startup $(ARGS)

bench-sweep: $(VENV)/all.done ## measure what 50, 100 and 200 trials of a sweep cost
	@$(VENV)/bin/python -m benchmarks.sweep $(ARGS)

environments: $(VENV)/all.done ## train with other versions of Python and the libraries
	@$(VENV)/bin/python -m benchmarks.environments $(ARGS)

faults: $(VENV)/all.done ## run the chaos tests against a faulty local Kaggle
	@$(VENV)/bin/python -m tests.chaos $(ARGS)

requirements: $(VENV)/uv.done ## update requirements/ from pyproject.toml
	@$(RESOLVE) --all-extras --group dev -o requirements/all.txt
	@$(RESOLVE) --constraint requirements/all.txt -o requirements/tool.txt
	@$(RESOLVE) --group docs --constraint requirements/all.txt -o requirements/docs.txt
	@echo uv | $(RESOLVE_FILE) - -o requirements/uv.txt

clean: ## remove build products and caches, but not runs/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

help: ## print this list
	@echo "Usage: make TARGET. On a fresh machine, start with: make smoke, make test"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

# One resolution for Linux and macOS, with hashes and without the URL of a package index.
RESOLVE_FILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-annotate
RESOLVE = $(RESOLVE_FILE) pyproject.toml
# Compile to bytecode at installation. Where Python cannot write __pycache__ later, every process
# would compile every module again.
INSTALL = $(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python

# Kaggle's image has NumPy 2.0.2 and pandas 2.2.2, which have no wheels for later versions.
OTHER_PYTHON = "src_salt\047s libraries need Python 3.11 or 3.12, but $(VENV) has another version. Remove $(VENV), then choose one: make PYTHON=python3.12 …"

$(VENV)/uv.done: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit("kernelkit needs Python 3.11 or later: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/tool.done: requirements/tool.txt $(VENV)/uv.done
	@$(INSTALL) --require-hashes -r requirements/tool.txt
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/all.done: requirements/all.txt $(VENV)/tool.done
	@$(VENV)/bin/python -c 'import sys; sys.exit($(OTHER_PYTHON) if sys.version_info[:2] not in ((3, 11), (3, 12)) else 0)'
	@echo "installing src_salt's libraries, including PyTorch: about 7 GB"
	@$(INSTALL) --require-hashes -r requirements/all.txt
	@$(INSTALL) --no-deps --editable . # its metadata names the extras
	@touch $@

$(PEERS)/all.done: benchmarks/requirements.txt benchmarks/overrides.txt | $(VENV)/uv.done
	@$(VENV)/bin/python -m venv --clear $(PEERS)
	@$(VENV)/bin/uv pip install --quiet --python $(PEERS)/bin/python -r $< \
		--overrides benchmarks/overrides.txt
	@touch $@

$(DOCS)/all.done: requirements/docs.txt | $(VENV)/uv.done
	@$(VENV)/bin/python -m venv --clear $(DOCS)
	@$(VENV)/bin/uv pip install --quiet --python $(DOCS)/bin/python --require-hashes -r $<
	@touch $@

$(SYNTHETIC): src_salt/synthetic.py | $(VENV)/all.done
	@$(VENV)/bin/python -m src_salt.synthetic build/inputs/tgs-salt-identification-challenge \
		--train 160 --test 40
	@touch $@
