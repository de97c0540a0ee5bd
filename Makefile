# The one-liners that people and CI share; `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := test
.NOTPARALLEL:

# The first interpreter that is new enough and can make virtual environments.
SUITABLE := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(SUITABLE)' >/dev/null 2>&1 && echo "$$python" && break; done)

VENV := .venv
BIN := $(VENV)/bin
PROTOC := .protoc
PYTHONS := 3.11 3.12 3.13 3.14 3.15
PIP := -m pip --quiet --disable-pip-version-check --retries 2 install
# One line instead of pip's pages, most of which are about a network that is not there.
OR_SAY = >$(VENV)/pip.log 2>&1 || { echo "pip: $$(grep ERROR $(VENV)/pip.log | tail -n 1)" \
	"(can it reach its package index? all it said is in $(VENV)/pip.log)" >&2; exit 1; }
# Most tests wait, so that several at a time keep two cores busy; each has engines of its own.
PYTEST := -m pytest -n 3 --dist worksteal
UNIT := -n 4 --hypothesis-profile=unit -m 'not live and not slow'
unexport PYTHONDONTWRITEBYTECODE # without bytecode, each process compiles all tests again

# A virtual environment without pip, or that was moved here from elsewhere, is made again.
SOUND := $(shell [ ! -e $(VENV) ] || { grep -qF '$(CURDIR)/$(VENV)' $(BIN)/activate && $(BIN)/python -c 'import pip'; } \
	2>/dev/null || rm -rf $(VENV))

.PHONY: help demo unit test cover lint format protos engines wheel pythons typing bare bench clean plan

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## the live picture of your Docker engine, or of a simulated one; SECONDS=10 ends it
	$(BIN)/python examples/demo.py $(if $(SECONDS),--seconds $(SECONDS))

unit: $(VENV)/installed-dev ## the tests that need no engine, one minute
	WHALEWATCH_LIVE=off $(BIN)/python $(PYTEST) $(UNIT)

test: plan engines lint ## everything, with real engines: thirteen minutes
	$(BIN)/python $(PYTEST)

cover: engines ## everything, and which lines of the library it runs
	$(BIN)/python $(PYTEST) --cov --cov-report=term

plan:
	@echo "make test: style, types, and all tests: about thirteen minutes on two quiet cores, after one or two to install."
	@echo "It installs into $(VENV) (300 MB) and, as root on Debian 12, real engines into a cache; 'make unit' needs none."

lint: $(VENV)/installed-dev ## style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev ## put the style right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A compiler of its own: so old that every protobuf runtime since 4.25 loads what it writes, and too old to be installed
# beside a current one. There are wheels of it up to Python 3.12.
protos: ## generated code, after a change in protos/
	[ -x $(PROTOC)/bin/python ] || $(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/python $(PIP) 'grpcio-tools==1.62.3' 'setuptools<81'
	$(PROTOC)/bin/python -m grpc_tools.protoc --proto_path protos --python_out src --pyi_out src \
		protos/whalewatch/_wire/*.proto
	sed -i 's/_Mapping\]/_Mapping[str, object]]/g' src/whalewatch/_wire/*.pyi # the compiler leaves out of what

# Without WHALEWATCH_LIVE=require the tests do without the engines that cannot be had here, and say which.
engines: $(VENV)/installed-dev
	@[ "$${WHALEWATCH_LIVE:-auto}" = off ] || $(BIN)/python -m tests.support.engines.install \
		|| [ "$${WHALEWATCH_LIVE:-auto}" = auto ]

wheel: $(VENV)/installed-dev ## build dist/*.tar.gz, and from it dist/*.whl
	rm -rf dist
	$(BIN)/python -m build --quiet

pythons: $(PYTHONS:%=python-%) ## the unit tier against the built wheel on each supported Python; python-3.12 is one

# The tests, too, are those of the source distribution: nothing of the checkout is used.
python-%: wheel
	@WHALEWATCH_LIVE=off $(BIN)/python -m tests.support.pythons $* -- $(PYTEST) $(UNIT)

typing: wheel ## a user's program and the public names, for mypy and pyright, against the built wheel
	@rm -rf .pythons/typing && $(BIN)/python -m venv .pythons/typing
	@.pythons/typing/bin/python $(PIP) --upgrade 'pip>=25.1' $(OR_SAY)
	@.pythons/typing/bin/python $(PIP) --group typing dist/*.whl $(OR_SAY)
	$(BIN)/python -m tests.typing $(CURDIR)/.pythons/typing/bin/python

bare: $(VENV)/installed-dev ## try both commands on a minimal Debian, in a folder; RELEASE=trixie for another
	$(BIN)/python -m tests.support.bare $(or $(RELEASE),bookworm)

bench: $(VENV)/installed-dev ## benchmarks
	$(BIN)/python -m tests.benchmarks

clean: ## start afresh
	rm -rf $(VENV) $(PROTOC) .pythons .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests examples -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer with venv found: on Debian, apt install python3-venv;" \
		"or name one: make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV)"; $(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@$(BIN)/python $(PIP) --editable . $(OR_SAY)
	@touch $@

# Dependency groups need a newer pip than some Pythons bring along.
$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@$(BIN)/python $(PIP) --upgrade 'pip>=25.1' $(OR_SAY)
	@$(BIN)/python $(PIP) --group dev --editable . $(OR_SAY)
	@touch $@ $(VENV)/installed
