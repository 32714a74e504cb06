# make demo        the whole pipeline on this machine's CPU, from made-up brains to figures
# make test        the tests, a few minutes
# make test-full   those that take long, too
# make test-slurm  the files in slurm/, under a Slurm of one node; as root on Debian or Ubuntu, it installs one
# make lint
PYTHON ?= python3
BIN = .venv/bin
# Two test processes of one thread each use two cores better than one process of two. In the order of the files, as those
# with few tests, which would come last, are the long ones.
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
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not slurm"

test-full: .venv/installed
	$(BIN)/python -m pytest -m "not slurm" --durations 10

test-slurm: .venv/installed
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld && command -v slurmd && command -v munged && command -v sbatch; } >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing slurm-wlm and munge"; apt-get update -q >/dev/null 2>&1; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm munge >/dev/null || true; \
	else echo "Slurm is not installed, and only root with apt-get may: the tests will be skipped"; fi
	$(BIN)/python -m pytest -m slurm -rs --durations 5 tests/test_slurm.py

lint: .venv/installed
	$(BIN)/ruff check .

.PHONY: demo test test-full test-slurm lint
