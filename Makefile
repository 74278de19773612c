# Two commands: `make quickstart` trains a tiny model, `make test` runs the tests. Both set up .venv first.
#
# TORCH_INDEX adds a package index that holds PyTorch's CPU build, where pip would otherwise fetch the CUDA one:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/ready
export OMP_NUM_THREADS ?= 1

.PHONY: setup quickstart test test-gpu lint fmt clean

setup: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	touch $(READY)

quickstart: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/run.sh

# Triton's kernels run in its interpreter, and are compiled for GPUs that are not there: each needs its own process.
test: $(READY)
	$(BIN)/python -m pytest
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels
	$(BIN)/python -m pytest tests/aot

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info runs
