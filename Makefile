# The torch requirement to install: the default takes the newest build, with CUDA on Linux.
# A machine without a GPU saves gigabytes with TORCH="torch --index-url <the CPU builds' index>", or a CPU wheel.
TORCH ?= torch
PYTHON ?= python3
PORT ?= 8899

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo check test test-long test-gpu screenshots bench clean

install: $(INSTALLED)

# What the JupyterLab extension is made of: a change of it builds and installs it again.
LAB := $(wildcard labextension/*.json labextension/yarn.lock labextension/schema/* labextension/src/* labextension/style/*)

# torch first and by itself: everything after it is content with the build that is there.
$(INSTALLED): pyproject.toml $(LAB)
	@echo "==> making .venv and installing (torch, transformers, deepspeed: some minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[lab,dev,test]"
	touch $@

demo: install
	$(BIN)/python -m jupyter_dsserve.demo --port $(PORT)

# The quick half: lint, format, types, and the tests of the JupyterLab extension in Node.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd labextension && PATH="$(CURDIR)/$(BIN):$$PATH" jlpm test

test: check
	$(BIN)/python -m pytest -q

test-long: install
	$(BIN)/python -m pytest -q -m long

# On a machine with a GPU and a CUDA build of torch; all other tests keep to the CPU.
test-gpu: install
	$(BIN)/python -m pytest -q -m gpu tests/gpu

# The README's pictures, taken by the browser tests.
screenshots: install
	$(BIN)/python -m pytest -q tests/browser --screenshots docs/images

bench: install
	$(BIN)/python -m tests.bench.bench_http
	$(BIN)/python -m tests.bench.bench_curves --out tests/bench/results
	$(BIN)/python -m tests.bench.bench_mixed --out tests/bench/results
	$(BIN)/python -m tests.bench.bench_busy
	$(BIN)/python -m tests.bench.bench_load
	$(BIN)/python -m tests.bench.bench_forward
	$(BIN)/python -m tests.bench.bench_embed
	$(BIN)/python -m tests.bench.bench_tensors

clean:
	rm -rf .venv build dist jupyter_dsserve/labextension labextension/build labextension/lib labextension/node_modules
