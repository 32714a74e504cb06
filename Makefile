# make demo        the whole pipeline on this machine's CPU, from made-up brains to figures
# make test        the tests, a few minutes
# make test-full   those that take long, too
# make lint
PYTHON ?= python3
BIN = .venv/bin
# Two test processes of one thread each use two cores better than one process of two.
WORKERS ?= 2

.venv/installed: requirements.txt requirements-dev.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MosaicDiT needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	@echo "installing PyTorch and the rest into .venv: about 6 GB, a few minutes"
	$(BIN)/pip install -q -r requirements.txt -r requirements-dev.txt -c requirements.lock
	@touch $@

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo/run.sh

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-full: .venv/installed
	$(BIN)/python -m pytest --durations 10

lint: .venv/installed
	$(BIN)/ruff check .

.PHONY: demo test test-full lint
