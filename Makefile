# make run    set up, tune for this machine, build, classify a photo, compare with PyTorch eager
# make test   set up, run all tests
# Neither needs root.

PYTHON ?= python3
BUDGET ?= 3m
THREADS ?= $(shell nproc)
VENV   := .venv
BIN    := $(VENV)/bin
OUT    := build

.PHONY: run test setup check bench clean

run: setup
	mkdir -p $(OUT)
	$(BIN)/python -m tune run --threads $(THREADS) --budget $(BUDGET)
	$(BIN)/python -m tune build --threads $(THREADS) -o $(OUT)/mobilenet_v1.so
	$(BIN)/python -m tune classify --lib $(OUT)/mobilenet_v1.so examples/photos/coffee.png examples/photos/chelsea.png
	$(BIN)/python -m tune bench --threads $(THREADS) --lib $(OUT)/mobilenet_v1.so --peers torch-eager --json $(OUT)/bench.json

test: setup
	$(BIN)/python -m pytest -n $(shell nproc) --dist loadfile --ignore tests/tune/test_rpc.py
	$(BIN)/python -m pytest tests/tune/test_rpc.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

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
