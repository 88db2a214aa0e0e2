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
DATA ?= ../shared/data

.PHONY: help setup demo test test-unit test-engine lint format lock bench bench-forecast bench-validate bench-decide bench-budget \
	bench-ledger bench-replicas bench-routers bench-tax bench-quick bench-tune bench-autoscalers test-kube e2e reference scan soak clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: ## Make .venv from the locked list (once)
	@scripts/setup.sh

demo: setup ## A reasoning model on a local Ray, scaled by its chain of thought; about 10 minutes
	@.venv/bin/reasonscale demo

test: test-unit test-kube test-engine ## Every test that this machine can run

test-unit: setup ## Unit and property tests: a minute
	@$(PYTEST) tests/unit

test-kube: setup ## Tests on a real API server; wants etcd, kube-apiserver and kubectl in the folder REASONSCALE_E2E_BIN
	@$(PYTEST) tests/kube

test-engine: setup ## Tests on a real vLLM under a real Ray, on CPU
	@scripts/test-engine.sh

e2e: setup ## The README's quick start and more on a real node of this machine: root, and binaries in REASONSCALE_E2E_BIN; 20 minutes
	@e2e/run.sh

lint: setup ## Style, types, import contracts, drift of what is generated
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@PYTHONPATH=operator .venv/bin/lint-imports
	@scripts/check-tree.sh

scan: setup ## What charts and examples become, scanned for unsafe settings; wants helm
	@scripts/scan.sh

format: setup ## Rewrite what `make lint` would complain of
	@.venv/bin/ruff check --fix-only --quiet
	@.venv/bin/ruff format

reference: setup ## Renew crds/ and docs/reference.md from the models
	@.venv/bin/reasonscale crds -o crds
	@sed 's|^metadata:$$|metadata:\n  annotations:\n    helm.sh/resource-policy: keep|' crds/reasonscale.io_reasoningmodels.yaml > charts/reasonscale-crds/templates/reasoningmodels.yaml
	@$(PY) -m reasonscale.api.reference docs/reference.md

lock: setup ## Renew the hash-locked requirements
	@PATH="$$PWD/.venv/bin:$$PATH" scripts/lock.sh --upgrade

bench: bench-forecast bench-decide bench-budget bench-ledger bench-replicas bench-routers bench-tax bench-autoscalers ## All benchmarks, one after another: many hours; goes on where it was interrupted

bench-quick: setup ## Ours against eighteen autoscalers on three traces, in the simulator: under three minutes
	@$(PY) -m bench.autoscalers quick --data $(DATA)

bench-tune: setup ## Choose each rival's parameters on the tuning traces
	@$(PY) -m bench.autoscalers tune --data $(DATA)

bench-autoscalers: setup ## The whole comparison: traces x cold starts x seeds
	@$(PY) -m bench.autoscalers full --data $(DATA)

bench-forecast: setup ## The forecast of tokens still to come against the truth
	@$(PY) -m bench.forecast --data $(DATA)

bench-validate: setup ## The simulator's engine against measurements of a real GPU
	@$(PY) -m bench.validate --data $(DATA)

bench-decide: setup ## Time of one decision
	@$(PY) -m bench.decide

bench-budget: setup ## Accuracy against thinking budget, on the bundled model
	@$(PY) -m bench.budget

bench-ledger: setup ## What the ledger costs a token
	@$(PY) -m bench.ledger

bench-tax: setup ## The whole stack against a bare vLLM
	@$(PY) -m bench.tax

bench-routers: setup ## Our router against Ray's, in the simulator and for real
	@$(PY) -m bench.routers simulated
	@$(PY) -m bench.routers real

bench-replicas: setup ## One replica against two
	@$(PY) -m bench.replicas

soak: setup ## What is too long for CI
	@bad=0; for f in $$(grep -rlE "mark\.soak" tests --include='test_*.py'); do $(PYTEST) -s -m soak $$f || [ $$? = 5 ] || bad=1; done; \
	e2e/run.sh -m soak || [ $$? = 5 ] || bad=1; exit $$bad

clean: ## Remove what was made here
	rm -rf .venv .venv-scan demo-report build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
