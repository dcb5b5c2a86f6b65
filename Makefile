# `make help` lists everything. All paths are relative, since the checkout may lie in a folder with spaces in its name,
# and programs are run as `.venv/bin/python -m …`, since scripts with such a path in their first line do not start.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests run demo test check bench nightly mutants docs lock format clean
.NOTPARALLEL:

PY := .venv/bin/python
# Two test processes for two cores: what a test waits for is often work of a server beside it. tests/conftest.py puts the long files first and keeps together what shares servers.
WORKERS := -n 2 --dist loadscope --no-loadscope-reorder
# Dozens of processes start per run: with compiled modules each needs a second less.
unexport PYTHONDONTWRITEBYTECODE
export PYTHON

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Install what is missing (run, test and the others do it by themselves).
	@sh scripts/setup.sh

setup-tests:
	@sh scripts/setup.sh --tests

run: setup ## Start the whole portal with everything it needs (WITH_AMQP=1: with RabbitMQ); Ctrl-C stops it.
	@$(PY) -m iiot up

demo: setup ## The same, with a demo tenant whose devices replay a real industrial data set.
	@$(PY) -m demo

test: setup-tests ## Run every test against real servers and print the coverage.
	@$(PY) -m pytest $(WORKERS) --cov --cov-report=term $(ARGS)
	@$(PY) -m coverage report --fail-under=90 --include='iiot/services/*,iiot/tenancy.py,iiot/auth.py,protocols/*' --skip-covered
	@$(PY) -m coverage report --fail-under=95 --include='iiot/auth.py,iiot/tenancy.py,iiot/services/roles.py,iiot/services/standing.py,iiot/services/limited.py'

check: setup ## Style, types, layers, schema and documents: what CI runs before the tests.
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())'
	@$(PY) -m pytest -q tests/architecture

bench: setup ## Run the benchmarks; each prints its ratio to a limit measured in the same run.
	@$(PY) -m bench

nightly: setup-tests ## The long versions: ten minutes of kill storm, faults under thirty seconds of their full rate, fuzzing, a hundred times the generated payloads.
	@IIOT_STORM_SECONDS=600 IIOT_FAULT_SECONDS=30 IIOT_OPENAPI_EXAMPLES=100 $(PY) -m pytest -m 'nightly or not nightly' --timeout 3600 --hypothesis-profile nightly $(ARGS)
	@$(MAKE) mutants

mutants: setup-tests ## Break the authorisation in every small way; the tests must notice nine of ten.
	@$(PY) scripts/mutants.py $(ARGS)

docs: setup ## Write docs/reference anew from the code.
	@$(PY) scripts/reference.py

lock: setup ## Resolve requirements.in into requirements.txt with hashes.
	@$(PY) -m uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 -q requirements.in -o requirements.txt
	@for wanted in tests/foreign/*/requirements.in; do \
	  $(PY) -m uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 -q $$wanted -o $${wanted%.in}.txt || exit; done

format: setup ## Format the Python code and mend what ruff can mend.
	@$(PY) -m ruff check --fix -q .
	@$(PY) -m ruff format -q .

clean: ## Remove what `make` has installed and built; var/ with its databases stays.
	rm -rf .venv node_modules iiot/portal/static/vendor .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -not -path './var/*' -prune -exec rm -rf {} +
