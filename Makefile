# Each target makes .venv and builds the libraries when needed. Needs Python 3.10 or later, a C and C++ compiler, make.
#
#   make demo             the embedded model reads 100 times its trained length and answers questions
#   make install          into the Python environment that is active: like `pip install .`, but builds llama.cpp once
#   make test             the tests
#   make check            format, lint, types, warnings and tests: what a change must pass
#   make warnings         the compiler's warnings about ggml_ext/, as errors
#   make bench            every bench; the last line of each is JSON
#   make sanitize         the op's cases and products under AddressSanitizer and UndefinedBehaviorSanitizer, AMX emulated
#   make clang            the op's cases with kernels compiled by clang; CLANG=clang-19 chooses one
#   make emulate          the op's cases on 64-bit Arm, in qemu-user with gcc's cross compiler
#   make models           docs/models.md: which layers of each of llama.cpp's architectures the op takes
#   make real-model       fetch SmolLM2-135M-Instruct for evals, and print where it is
#   make upstream-tests   llama.cpp's own tests on the patched tree
#   make build            .venv, and the libraries in pyllama_long/lib
#   make format           rewrite the sources the way `check` wants them
#   make clean            remove what was built; distclean also removes .venv and the fetched source

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
TREE := vendor/llama.cpp/tree
C_SOURCES := $(shell find ggml_ext tests -name '*.c' -o -name '*.h' -o -name '*.cpp')

# The interpreter of the environment that is active: PATH is still the caller's here.
CALLER := $(shell command -v $(PYTHON))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
# Settings of the caller's shell for other projects must not reach this one.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV LLAMA_CPP_LIB_PATH PYLLAMA_LONG_LIB PLLAMA_ISA CMAKE_ARGS PIP_USER
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo install test check format-check lint types warnings format bench sanitize clang emulate models real-model upstream-tests build venv clean distclean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

demo: build
	@$(BIN)/python -m pyllama_long demo

install:
	@[ -n '$(CALLER)' ] || { echo 'no $(PYTHON) here: make install PYTHON=...' >&2; exit 1; }
	@scripts/step.sh 'installing the bindings of llama.cpp' build/bindings.log scripts/install_bindings.sh $(CALLER)
	@scripts/step.sh 'building and installing pyllama-long' build/pip.log $(CALLER) -m pip install --quiet .

test: build
	@$(BIN)/python -m pytest

check: format-check lint types warnings test sanitize

format-check: venv
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)

lint: venv
	$(BIN)/ruff check
	$(BIN)/python scripts/check_parameters.py

types: venv
	$(BIN)/mypy

warnings: build
	$(BIN)/python scripts/check_warnings.py build/dev

format: venv
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C_SOURCES)

bench: build
	$(BIN)/python scripts/bench_attention.py
	$(BIN)/python scripts/bench_context.py --lengths 1k,4k,16k
	$(BIN)/python scripts/bench_memory.py
	$(BIN)/python scripts/bench_weights.py
	$(BIN)/python scripts/bench_server.py

CASES := build/cases
ARM := aarch64-linux-gnu

sanitize: build
	$(BIN)/python tests/native_cases.py $(CASES)
	$(BIN)/cmake -S tests/native -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DPLONG_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --target run_cases run_products extremes
	build/sanitize/extremes
	build/sanitize/run_products
	build/sanitize/run_cases $(CASES)/*.case

CLANG ?= clang

clang: build
	$(BIN)/python tests/native_cases.py $(CASES)
	$(BIN)/cmake -S tests/native -B build/clang -G Ninja -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_C_COMPILER=$(CLANG) -DCMAKE_CXX_COMPILER=$(subst clang,clang++,$(CLANG))
	$(BIN)/cmake --build build/clang --target run_cases run_products
	build/clang/run_products
	build/clang/run_cases $(CASES)/*.case

emulate: build
	$(BIN)/python tests/native_cases.py $(CASES)
	$(BIN)/cmake -S tests/native -B build/arm -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=$(ARM)-gcc -DCMAKE_CXX_COMPILER=$(ARM)-g++ \
		-DCMAKE_EXE_LINKER_FLAGS=-static
	$(BIN)/cmake --build build/arm --target run_cases
	qemu-aarch64-static build/arm/run_cases $(CASES)/*.case

models: build
	$(BIN)/python scripts/models_table.py

real-model:
	@$(PYTHON) scripts/real_model.py

upstream-tests: venv
	$(BIN)/cmake -S . -B build/upstream -G Ninja -DPLONG_UPSTREAM_TESTS=ON -DPython3_EXECUTABLE=$(BIN)/python
	$(BIN)/cmake --build build/upstream --target test-backend-ops test-llama-archs
	build/upstream/bin/test-backend-ops test -b CPU
	build/upstream/bin/test-llama-archs

# ---- what the targets depend on ----

build: venv build/dev/build.ninja
	@scripts/step.sh 'building the libraries' build/build.log $(BIN)/cmake --build build/dev
	@$(BIN)/cmake --install build/dev --component pyllama_long --prefix . >/dev/null

build/dev/build.ninja: CMakeLists.txt | venv
	@scripts/step.sh 'fetching and configuring llama.cpp' build/configure.log \
		$(BIN)/cmake -S . -B build/dev -G Ninja -DPython3_EXECUTABLE=$(BIN)/python

venv: $(VENV)/.installed

$(VENV)/.tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	@scripts/step.sh 'making .venv' build/venv.log $(PYTHON) -m venv $(VENV)
	@scripts/step.sh 'installing the tools to build with' build/tools.log \
		$(BIN)/python -m pip install --quiet 'scikit-build-core[pyproject]>=0.11' 'cmake>=3.21,<5' 'ninja>=1.11'
	@touch $@

# Installs the bindings of llama_cpp without their own copy of llama.cpp, and this project in editable form.
$(VENV)/.installed: pyproject.toml | $(VENV)/.tools
	@scripts/step.sh 'installing the bindings of llama.cpp' build/bindings.log \
		scripts/install_bindings.sh $(BIN)/python --no-build-isolation
	@scripts/step.sh 'installing the project' build/install.log \
		$(BIN)/python -m pip install --quiet --no-build-isolation \
		--config-settings=wheel.cmake=false --editable '.[dev]'
	@touch $@

clean:
	rm -rf build pyllama_long/lib .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find pyllama_long scripts tests -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(TREE)
