PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test slow lint bench break faults docs clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.etmann2019.mnist --preset demo --open

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed

break: $(VENV)/installed
	$(BIN)/python -m benchmarks.soundness

faults: $(VENV)/installed
	$(BIN)/python -m benchmarks.failures

docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/installed: $(REQUIREMENTS) pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement $(REQUIREMENTS)
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true  # on all cores, as pip does not
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
