# make run    set up, tune for this machine, build, classify a photo, compare with PyTorch eager
# make test   set up, run all tests
# make check  the same, and format, lint and types before it
# None needs root.

PYTHON ?= python3
BUDGET ?= 3m
THREADS ?= $(shell nproc)
VENV   := .venv
BIN    := $(VENV)/bin
OUT    := build
# Files in their order, whole: by their number of tests, the default, the longest would be the last.
SPREAD := --dist loadfile --no-loadscope-reorder

.PHONY: run test lint check setup clean

run: setup
	mkdir -p $(OUT)
	$(BIN)/python -m tune run --threads $(THREADS) --budget $(BUDGET)
	$(BIN)/python -m tune build --threads $(THREADS) -o $(OUT)/mobilenet_v1.so
	$(BIN)/python -m tune classify --lib $(OUT)/mobilenet_v1.so examples/photos/coffee.png examples/photos/chelsea.png
	$(BIN)/python -m tune bench --threads $(THREADS) --lib $(OUT)/mobilenet_v1.so --peers torch-eager --json $(OUT)/bench.json

test: setup
	$(BIN)/python -m pytest -n $(shell nproc) $(SPREAD) --ignore tests/tune/test_rpc.py
	$(BIN)/python -m pytest tests/tune/test_rpc.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	@command -v g++ >/dev/null || command -v c++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "no C++ compiler on PATH; expected g++ or clang++, which link what TVM compiles;" \
	       "install one, on Debian as root: apt-get install g++" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment; expected its venv module;" \
	       "install it, on Debian as root: apt-get install python3-venv" >&2; exit 3; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,peers,dev,arm64,cuda]'
	touch $@

clean:
	rm -rf $(OUT) $(VENV)
