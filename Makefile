# Everything a fresh machine needs is python3 (3.11–3.13), git and make.
PYTHON ?= python3
PY := .venv/bin/python

SLOW := tests/perfuse_jobs tests/perfuse_serving tests/journeys

.PHONY: quickstart test test-fast test-slow setup check bench

quickstart: setup  ## the main job on embedded defaults, 2 to 7 minutes on two cores
	.venv/bin/perfuse quickstart

test: test-fast test-slow  ## all tests (-j2: halves side by side); journeys that need Ceph or PostgreSQL skip where those are missing

test-fast: setup
	$(PY) -m pytest $(SLOW:%=--ignore=%)

test-slow: setup
	$(PY) -m pytest $(SLOW)

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"perfuse needs Python 3.11 to 3.13; {sys.executable} is {v[0]}.{v[1]}. Say: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q -c constraints.txt uv
	$(PY) -m uv pip install -q --compile-bytecode --python $(PY) -c constraints.txt -e '.[all,dev]'
	@touch $@

check: setup  ## ruff, mypy strict, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: setup  ## every benchmark that needs no server, one after the other
	@for name in allocation augmentation campaigns codecs feeder inference ingest metrics training training_step vesselnn; do echo "== $$name"; $(PY) bench/$$name.py || exit 1; done
