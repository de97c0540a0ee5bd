# The one-liners that people and CI share; CONTRIBUTING.md explains them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := test
.NOTPARALLEL:

# The first interpreter that is new enough and can make virtual environments.
SUITABLE := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(SUITABLE)' >/dev/null 2>&1 && echo "$$python" && break; done)

VENV := .venv
BIN := $(VENV)/bin
PROTOC := .protoc
MATRIX := 3.11 3.12 3.13 3.14
PIP := -m pip --quiet --disable-pip-version-check install

.PHONY: demo test lint format protos engines matrix bench clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py $(if $(SECONDS),--seconds $(SECONDS))

# Most tests wait for engines, so that three at a time keep two cores busy; each has engines of its own.
test: engines lint
	$(BIN)/python -m pytest -n 3 --cov --cov-report=term

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A compiler of its own: so old that every protobuf runtime since 4.25 loads what it writes, and too old to be installed
# beside a current one. There are wheels of it up to Python 3.12.
protos:
	[ -x $(PROTOC)/bin/python ] || $(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/python $(PIP) 'grpcio-tools==1.62.3' 'setuptools<81'
	$(PROTOC)/bin/python -m grpc_tools.protoc --proto_path protos --python_out src --pyi_out src \
		protos/whalewatch/_wire/*.proto
	sed -i 's/_Mapping\]/_Mapping[str, object]]/g' src/whalewatch/_wire/*.pyi # the compiler leaves out of what

# Without WHALEWATCH_LIVE=require the tests do without the engines that cannot be had here, and say which.
engines: $(VENV)/installed-dev
	@[ "$${WHALEWATCH_LIVE:-auto}" = off ] || $(BIN)/python -m tests.support.engines.install \
		|| [ "$${WHALEWATCH_LIVE:-auto}" = auto ]

# The whole suite against the built wheel on each Python that this machine has.
matrix: engines $(MATRIX:%=matrix-%)

matrix-%:
	@python=$$(for python in python$* $(HOME)/.pyenv/versions/$*.*/bin/python; do \
		"$$python" -c 'import ensurepip' >/dev/null 2>&1 && echo "$$python" && break; done || true); \
	if [ -z "$$python" ]; then echo "Python $*: not on this machine, left out"; exit 0; fi; \
	echo "Python $*: $$python"; \
	[ -x .matrix/$*/bin/python ] || "$$python" -m venv .matrix/$*; \
	.matrix/$*/bin/python $(PIP) --upgrade 'pip>=25.1'; \
	.matrix/$*/bin/python $(PIP) --group dev .; \
	.matrix/$*/bin/python $(PIP) --force-reinstall --no-deps .; \
	.matrix/$*/bin/python -m pytest -p no:cacheprovider

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) $(PROTOC) .matrix .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests examples -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer with venv found; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) --editable .
	@touch $@

# Dependency groups need a newer pip than some Pythons bring along.
$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) --upgrade 'pip>=25.1'
	$(BIN)/python $(PIP) --group dev --editable .
	@touch $@ $(VENV)/installed
