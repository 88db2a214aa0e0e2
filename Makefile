# The two commands that matter: `make demo` and `make test`. Both set up everything they need in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# With bytecode off, every engine process would compile its imports again: 139 s to start instead of 59.
unexport PYTHONDONTWRITEBYTECODE
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
SEED ?= 1
E2E_BIN ?= $(REASONSCALE_E2E_BIN)
DATA ?= ../shared/data

.PHONY: help setup demo test test-unit test-engine test-kube e2e lint format types lock bench bench-quick bench-validate \
	bench-budget bench-tax bench-replicas bench-forecast bench-decide bench-ledger soak clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: ## Make .venv from the locked list (once)
	@scripts/setup.sh

demo: setup ## A reasoning model on a local Ray, scaled by its chain of thought; about 10 minutes
	@.venv/bin/reasonscale demo

test: test-unit test-engine ## Every test that this machine can run

test-unit: setup ## Unit and property tests: a minute
	@$(PYTEST) tests/unit

test-engine: setup ## Tests on a real vLLM under a real Ray, on CPU
	@scripts/test-engine.sh

test-kube: setup ## Tests on a real API server; REASONSCALE_E2E_BIN names the folder with its binaries
	@$(PYTEST) tests/kube

e2e: setup ## The operator on a real Kubernetes with KubeRay; see docs/kubernetes.md
	@e2e/run.sh

lint: setup ## Style, types, import contracts, drift of what is generated
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@PYTHONPATH=operator .venv/bin/lint-imports
	@scripts/check-tree.sh

format: setup ## Rewrite what `make lint` would complain of
	@.venv/bin/ruff check --fix-only --quiet
	@.venv/bin/ruff format

lock: setup ## Renew the hash-locked requirements
	@PATH="$$PWD/.venv/bin:$$PATH" scripts/lock.sh --upgrade

bench: setup ## The autoscalers against each other, all of it: hours
	@$(PY) -m bench.autoscalers --data $(DATA)

bench-quick: setup ## The autoscalers against each other, a few minutes' worth
	@$(PY) -m bench.autoscalers --quick --data $(DATA)

bench-validate: setup ## The simulator against measurements of a real GPU
	@$(PY) -m bench.validate --data $(DATA)

bench-forecast: setup ## The forecast of tokens still to come against the truth
	@$(PY) -m bench.forecast --data $(DATA)

bench-decide: setup ## Time of one decision
	@$(PY) -m bench.decide

bench-budget: setup ## Accuracy against thinking budget, on the bundled model
	@$(PY) -m bench.budget

bench-ledger: setup ## What the ledger costs a token
	@$(PY) -m bench.ledger

bench-tax: setup ## The whole stack against a bare vLLM
	@$(PY) -m bench.tax

bench-replicas: setup ## One replica against two
	@$(PY) -m bench.replicas

soak: setup ## What is too long for CI
	@$(PYTEST) -m soak tests

clean: ## Remove what was made here
	rm -rf .venv demo-report build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
