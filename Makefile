# The two commands a newcomer needs, `make quickstart` and `make test`. Each sets up what it
# needs once: a second call finds it done.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help quickstart example-study example-pretraining example-segmentation test test-slow test-aot test-aot-all lint clean

help:
	@echo "make quickstart     draw a synthetic fundus set, fine-tune a small ViT on it, report"
	@echo "make example-study  every protocol on tiny backbones, and its report"
	@echo "make example-pretraining  a linear probe before and after pre-training without labels"
	@echo "make example-segmentation  lesions by a network, beside the best threshold"
	@echo "make test           every test (a quarter of an hour on 2 cores)"
	@echo "make test-slow      the tests that take longer"
	@echo "make test-aot       steps compiled for TPUs and GPUs, without either"
	@echo "make test-aot-all   the same for the full product of networks and targets: a table"
	@echo "make lint           ruff and pyright"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/it" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

# PyTorch is pinned, and torchvision (of timm) with it: they are only the reference of the tests,
# and a range would fetch the newest build with its CUDA libraries.
$(VENV)/.installed-test: pyproject.toml | $(VENV)/.installed
	$(PIP) --editable '.[test,convert]' torch==2.13.0 torchvision==0.28.0
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed-test
	$(PIP) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/python run.py --config=configs/quickstart.py --workdir=runs/quickstart

example-study: $(VENV)/.installed
	$(BIN)/fmi-jax draw isic2019 runs/example/raw/isic2019 --images 400
	$(BIN)/fmi-jax draw chexpert runs/example/raw/chexpert --images 400
	$(BIN)/fmi-jax prepare isic2019 --source runs/example/raw/isic2019 --size 48 --split upstream \
	  --data-dir runs/example/data
	$(BIN)/fmi-jax prepare chexpert --source runs/example/raw/chexpert --size 48 --split upstream \
	  --data-dir runs/example/data
	$(BIN)/fmi-jax study run example --root runs/example --data-dir runs/example/data --jobs 2
	$(BIN)/fmi-jax study run example_speed --root runs/example --data-dir runs/example/data
	$(BIN)/fmi-jax report --root runs/example

example-pretraining: $(VENV)/.installed
	$(BIN)/fmi-jax study run examples/pretraining.py --root runs/pretraining \
	  --data-dir runs/pretraining/data --jobs 2
	$(BIN)/fmi-jax report --root runs/pretraining

example-segmentation: $(VENV)/.installed
	$(BIN)/python examples/segmentation.py --root runs/segmentation

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# The compilers, at the versions that fit the jax of the tests, in an environment of their own
# (`pip install '.[aot]'`; 2.7 GB); FMI_JAX_AOT names one that is elsewhere.
AOT := .venv-aot

$(AOT)/.installed: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[aot]' \
	  "jax==$$($(BIN)/python -c 'import jax; print(jax.__version__)')"
	@touch $@

$(AOT): $(AOT)/.installed

ifdef FMI_JAX_AOT
compilers:
else
compilers: $(AOT)/.installed
endif
.PHONY: compilers

test-aot: $(VENV)/.installed-test compilers
	$(BIN)/python -m pytest -m aot --durations=30 tests/aot/test_aot_programs.py

test-aot-all: $(VENV)/.installed compilers
	$(BIN)/python -m benchmarks.aot_all

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) $(AOT) runs
