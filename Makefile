# make demo        the whole pipeline on this machine's CPU, from made-up brains to figures
# make test        the tests: a few minutes on two cores
# make test-quick  the tests that start no process, for work in progress: about a minute
# make test-full   all tests, also those that take minutes each
# make test-gpu    the tests that need a CUDA GPU
# make test-slurm  the files in slurm/, under a Slurm of one node that the tests start; as root on
#                  Debian or Ubuntu, this installs Slurm first
# make lint        ruff
PYTHON ?= python3
BIN = .venv/bin
# Two test processes of one thread each use two cores better than one process of two threads.
WORKERS ?= 2

.venv/installed: requirements.txt requirements-dev.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "MosaicDiT needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	@echo "installing PyTorch and the rest into .venv: about 6 GB, a few minutes"
	$(BIN)/pip install -q -r requirements.txt -r requirements-dev.txt -c requirements.lock
	@touch $@

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo/run.sh

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	    -m "not slow and not slurm"

test-quick: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	    -m "not slow and not slurm" --quick

test-full: .venv/installed
	$(BIN)/python -m pytest -m "not slurm" --durations 10

test-gpu: .venv/installed
	$(BIN)/python -m pytest --gpu -rs tests/test_gpu.py

test-slurm: .venv/installed
	@PATH="$$PATH:/usr/sbin"; \
	missing=; \
	for program in slurmctld slurmd munged sbatch; do \
	    command -v $$program >/dev/null || missing=$$program; \
	done; \
	if [ -z "$$missing" ]; then \
	    :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing slurm-wlm and munge"; \
	    apt-get update -q >/dev/null 2>&1; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	        slurm-wlm munge >/dev/null || true; \
	else \
	    echo "Slurm is not installed; installing it takes root and apt-get." \
	        "The tests will be skipped."; \
	fi
	$(BIN)/python -m pytest -m slurm -rs --durations 5 tests/test_slurm.py

lint: .venv/installed
	$(BIN)/ruff check .

.PHONY: demo test test-quick test-full test-gpu test-slurm lint
