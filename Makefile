# make run    builds, serves on 127.0.0.1:8025 into ./mail, metrics on 127.0.0.1:9125;
#             LISTEN=127.0.0.1:2525 METRICS= for another port and no metrics
# make test   runs the tests
# Both need Python >= 3.11 with venv, a C compiler, and the network for the first install.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install -q --disable-pip-version-check
SOURCES := setup.py pyproject.toml fastsmtp/_version.py $(wildcard src_ext/fastsmtp/*.pyx src_ext/fastsmtp/*.pxd src_ext/fastsmtp/*.c src_ext/fastsmtp/*.h)
# The generated C lies beside its source and must not count as one.
SOURCES := $(filter-out src_ext/fastsmtp/_%.c,$(SOURCES))
ARGS ?=
LISTEN ?= 127.0.0.1:8025
METRICS ?= 127.0.0.1:9125

.PHONY: build wheel run test lint format sanitize coverage fuzz bench instructions docs clean

build: .venv/built

.venv/built: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastsmtp needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "fastsmtp needs the header files of $(PYTHON) (Debian: apt install python3-dev)" >&2; exit 1; }
	@command -v $(firstword $(CC)) > /dev/null || command -v gcc > /dev/null || \
	  { echo "fastsmtp needs a C compiler (Debian: apt install build-essential)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "build: makes the environment .venv with `$(PYTHON) -V 2>&1`"; $(PYTHON) -m venv .venv; }
	@echo "build: installs what fastsmtp needs into .venv and compiles its core; about a minute on two CPUs"
	@$(PIP_INSTALL) -e .
	@echo "build: done; the command is $(BIN)/fastsmtp"
	@touch $@

.venv/tested-with: .venv/built
	@echo "build: installs what the tests need"
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

.venv/linted-with: .venv/tested-with
	@echo "build: installs what the linters need"
	@$(PIP_INSTALL) -e '.[test,lint]'
	@touch $@

wheel: build
	@echo "wheel: compiles the core once more, without debug information; about a minute on two CPUs"
	@$(BIN)/pip wheel -q --disable-pip-version-check --no-deps --wheel-dir dist .
	@echo "wheel: done; it is in dist/"

run: build
	$(BIN)/fastsmtp serve --listen $(LISTEN) --deliver maildir:./mail --metrics "$(METRICS)" $(ARGS)

test: .venv/tested-with
	@echo "test: all tests take about six minutes on two CPUs; make test ARGS=tests/test_body.py runs some of them"
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/linted-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(CURDIR)/$(BIN):$$PATH cython-lint src_ext/fastsmtp/*.pyx src_ext/fastsmtp/*.pxd
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --ignore-missing-stub --ignore-disjoint-bases --ignore-unused-allowlist \
	  --allowlist tests/stubtest.txt fastsmtp._core fastsmtp._commands \
	  fastsmtp._wire fastsmtp._secure fastsmtp._stream fastsmtp._rules fastsmtp._engine fastsmtp._envelope fastsmtp._reception fastsmtp._load \
	  fastsmtp._signals

format: .venv/linted-with
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A copy of the tree is built with AddressSanitizer and UndefinedBehaviorSanitizer, and runs the tests of the core.
SANITIZED_TESTS := tests/test_engine.py tests/test_dialogue.py tests/test_property.py tests/test_smuggling.py tests/test_lenient.py \
  tests/test_connection.py tests/test_stream.py tests/test_tls.py tests/test_load.py
# What pyproject.toml has pip install for a build, for builds without pip.
BUILD_NEEDS := 'setuptools>=77' 'Cython>=3.1,<4'
SANITIZERS = $$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)
sanitize: .venv/tested-with
	$(call copy_tree,build/sanitize)
	$(PIP_INSTALL) $(BUILD_NEEDS)
	cd build/sanitize && FASTSMTP_SANITIZE=1 ../../$(BIN)/python setup.py -q build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$(SANITIZERS)" PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  ../../$(BIN)/python -m pytest -p no:cacheprovider $(SANITIZED_TESTS) $(ARGS)

coverage: .venv/tested-with
	$(PIP_INSTALL) $(BUILD_NEEDS) -e '.[test,coverage]'
	$(call copy_tree,build/coverage)
	cd build/coverage && FASTSMTP_COVERAGE=1 ../../$(BIN)/python setup.py -q build_ext --inplace
	cd build/coverage && ../../$(BIN)/python -m coverage run -m pytest -p no:cacheprovider $(ARGS)
	cd build/coverage && ../../$(BIN)/python -m coverage combine -q && ../../$(BIN)/python -m coverage report

define copy_tree
rm -rf $(1)
mkdir -p $(1)
cp -R setup.py pyproject.toml *.md LICENSE Makefile fastsmtp src_ext tests docs examples benchmarks $(1)
rm -rf $(1)/fastsmtp/*.so $(1)/src_ext/fastsmtp/_*.c $(1)/benchmarks/build
endef

fuzz: .venv/tested-with
	$(BIN)/python -m tests.fuzz $(ARGS)

# Every figure of benchmarks/README.md, in about an hour. What cannot be had or fails is named there, and does not stop
# the rest.
bench: .venv/tested-with
	$(PIP_INSTALL) -e '.[test,benchmarks]'
	-$(BIN)/python -m benchmarks peers
	-$(BIN)/python -m benchmarks --pin --patience 30 --json benchmarks/results/compare.json $(ARGS)
	-$(BIN)/python -m benchmarks latency --pin --json benchmarks/results/latency.json
	-$(BIN)/python -m benchmarks idle --json benchmarks/results/idle.json
	-$(BIN)/python -m benchmarks large --json benchmarks/results/large.json
	-$(BIN)/python -m benchmarks lifetime --json benchmarks/results/lifetime.json
	-$(BIN)/python -m benchmarks hostile --pin --json benchmarks/results/hostile.json
	-$(BIN)/python -m benchmarks tuning --pin --patience 30 --json benchmarks/results/tuning.json
	$(BIN)/python -m benchmarks report

# Linux and valgrind; without them it says so. ARGS=--record makes what is counted the bound.
instructions: build
	$(BIN)/python -m benchmarks.instructions $(ARGS)

docs: build
	$(BIN)/fastsmtp config-docs > docs/configuration.md
	$(BIN)/python -m fastsmtp.metrics > docs/metrics.md

clean:
	rm -rf build benchmarks/build dist .venv *.egg-info fastsmtp/*.so src_ext/fastsmtp/_*.c
