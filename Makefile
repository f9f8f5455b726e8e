# make mnist, make test: each sets up .venv, builds snnfast into it, and runs. They need Python 3.10+ and g++.
# ARGS goes to the command: make mnist ARGS="--epochs 10 --device cuda".

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
SOURCES = setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: mnist test bench lint format build wheel clean

mnist: build
	$(VENV)/bin/python examples/mnist.py --recipe rate-fc $(ARGS)

test: build
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

bench: build
	$(PIP) install --quiet --no-deps spikingjelly==2.0.0 loguru
	$(VENV)/bin/python benchmarks/run.py $(ARGS)

lint: $(VENV)/dependencies
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files 'csrc/*' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/dependencies
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files 'csrc/*' | xargs $(VENV)/bin/clang-format -i

build: $(VENV)/built

wheel: $(VENV)/dependencies
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info snnfast/*.so $(VENV)/built

$(VENV)/dependencies: requirements-dev.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'snnfast needs Python 3.10 or newer, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/built: $(VENV)/dependencies $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps --editable .
	touch $@
