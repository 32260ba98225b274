# Every target sets up what it needs: the first one makes $(VENV) and installs the exact versions
# of constraints.txt into it. Nothing after that touches the network.
#
# The one environment holds the development tools too: next to torch they weigh nothing, and
# `make demo` followed by `make test` installs once.

VENV ?= .venv
PYTHON := $(VENV)/bin/python
POSEMUX := $(VENV)/bin/posemux
INSTALLED := $(VENV)/.installed

# The interpreters to try, the first that is new enough wins: make test HOST_PYTHON=/opt/python3.12
HOST_PYTHON ?= python3.12 python3.11 python3

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint docs

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

demo: $(INSTALLED) ## poses of a sample photo in each representation, drawn into demo/
	@set -e; \
	assets=$$($(PYTHON) -c 'from importlib.util import find_spec; print(*find_spec("ultralytics").submodule_search_locations)')/assets; \
	for representation in simcc dark pct; do \
	    $(POSEMUX) predict "$$assets/bus.jpg" --representation $$representation --out demo; \
	done

serve: $(INSTALLED) ## the service, on http://127.0.0.1:8000
	$(POSEMUX) serve

test: $(INSTALLED) ## the tests
	$(PYTHON) -m pytest

lint: $(INSTALLED) ## ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict app models client/posemux_client

docs: $(INSTALLED) ## the documentation, in site/index.html; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	@set -e; python=; \
	for candidate in $(HOST_PYTHON); do \
	    if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "posemux needs Python 3.11 or newer with its venv module (Debian: python3-venv)." >&2; \
	    echo "Tried: $(HOST_PYTHON). Name another one: make HOST_PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$($$python --version); torch is large, this takes minutes."; \
	$$python -m venv $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[bench,dev,docs,eval,export,otel,ray,train,video]' --editable ./client
	@touch $@
