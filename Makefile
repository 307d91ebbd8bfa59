# make demo    three hospitals train a model together on this machine
# make test    the fast tests;  make test-all adds the slow ones and make fuzz
# make fuzz    tries all parsers with bytes of strangers, FUZZ_MINUTES in all
# make soak    trains for SOAK_MINUTES and shows that nothing grows
# make lint    style and types;  make format repairs what can be repaired
# make hooks   git runs make lint before each commit
# make mutants shows that the fast tests notice what they are there for (an hour)
# make bench   tests of time, then one training step of each workload beside stock CrypTen
# make clean   remove what runs and tools leave behind (the environment stays)

PYTHON ?= python3
FUZZ_MINUTES ?= 8
SOAK_MINUTES ?= 30
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

# Tests are spread over as many processes; those of one file stay together, with what they share.
JOBS   ?= 2
SPREAD := -n $(JOBS) --dist loadfile

WORKLOADS := lr784 net_a relu matmul softmax

.DEFAULT_GOAL := test
.PHONY: install demo test test-all fuzz soak mutants lint format hooks bench clean

install: $(READY)

# CrypTen's own metadata cannot be installed (it names a dead package), so it comes alone, after
# what it needs. Ordinary resolution for the rest: torch has companions on some platforms. The
# stamp is written last: an interrupted installation is taken up again.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet -r requirements.txt
	@$(PY) -m pip install --quiet --no-deps crypten==0.4.1
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(PY) -m protocols.ring.kernels
	@touch $@

demo: $(READY)
	@$(PY) examples/breast_cancer/make_data.py
	@$(PY) launch.py examples/breast_cancer/job.toml --compare --vault
	@echo; echo "Once more, and in federated rounds:"; $(PY) examples/federated/both_ways.py

test: $(READY)
	$(PY) -m pytest $(SPREAD) --cov --cov-report= -m "not slow and not timed and not soak"

test-all: $(READY)
	$(PY) -m pytest $(SPREAD) -m "not timed and not soak"
	$(MAKE) fuzz

fuzz: $(READY)
	@$(PY) -m pip install --quiet atheris==3.0.0 || \
	  echo "Atheris has wheels for Linux with Python 3.11 to 3.13 only."
	$(PY) -m tests.fuzz.guided --minutes $(FUZZ_MINUTES)

soak: $(READY)
	SOAK_MINUTES=$(SOAK_MINUTES) $(PY) -m pytest -m soak tests/runs/test_soak.py

mutants: $(READY)
	$(PY) -m tests.mutants.run

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Before each commit: style, and the types of what changed (mypy keeps what it knows of the rest).
hooks: $(READY)
	@hook="$$(git rev-parse --git-path hooks)/pre-commit"; \
	  printf '#!/bin/sh\nexec make --no-print-directory lint\n' > "$$hook" && chmod +x "$$hook" && \
	  echo "git runs make lint before each commit ($$hook)"

bench: $(READY)
	$(PY) -m pytest -m timed
	@for workload in $(WORKLOADS); do \
	  $(PY) tests/bench/step.py --workload $$workload --vs crypten || exit; \
	done

clean:
	rm -rf build dist runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
