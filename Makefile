.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
# Installed first and only where the environment has none: pip would take the newest otherwise.
TORCH  ?= torch==2.13.0
# For pytest: make test ARGS="-k config"
ARGS   ?=
# For make quality; without, all of it, written to docs/quality.md.
CASES  ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO  := demo_output

# Tests run small models in many processes: more threads each only get in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test check bench bench-gpu quality defaults clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the package, editable, and every tool

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install -e ".[dev]"
	touch $@

demo: $(STAMP) ## collect, infer and check the scripts of the tutorial
	rm -rf $(DEMO)
	$(BIN)/traincheck-collect --pyscript examples/tutorial/mnist.py \
		--models-to-track model --output-dir $(DEMO)/mnist_trace
	$(BIN)/traincheck-infer -f $(DEMO)/mnist_trace -o $(DEMO)/invariants.json
	$(BIN)/traincheck-collect --pyscript examples/tutorial/forum_84911.py \
		--models-to-track model --output-dir $(DEMO)/forum_84911_trace
	$(BIN)/traincheck-check -f $(DEMO)/forum_84911_trace -i $(DEMO)/invariants.json \
		-o $(DEMO)/results --exit-zero

test: check ## check, then run the tests
	$(BIN)/python -m pytest -n auto $(ARGS)

check: $(STAMP) ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## run the benchmarks, or some: make bench ARGS="overhead --rounds 3"
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(STAMP) ## run the benchmarks of overhead and shares on a CUDA device
	$(BIN)/python -m benchmarks overhead shares --device cuda $(ARGS)

quality: $(STAMP) ## find the seeded bugs, stay silent on healthy runs: CASES="vae lstm.same_batch"
	$(BIN)/python -m benchmarks.quality $(if $(CASES),$(CASES),--write)

defaults: $(STAMP) ## learn the bundled invariants anew from the healthy pipelines of this repository
	$(BIN)/python -m tools.default_invariants

clean: ## remove the environment, caches and everything generated
	rm -rf $(VENV) $(DEMO) bench_output build dist *.egg-info .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
