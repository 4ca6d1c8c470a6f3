# The two commands a newcomer needs, `make quickstart` and `make test`. Each sets up what it
# needs once: a second call finds it done.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help quickstart example-study example-pretraining example-segmentation test test-slow test-aot test-aot-all test-lowest test-newest audit lint clean

help:
	@echo "make quickstart     draw a synthetic fundus set, fine-tune a small ViT on it, report"
	@echo "make example-study  every protocol on tiny backbones, and its report"
	@echo "make example-pretraining  a linear probe before and after pre-training without labels"
	@echo "make example-segmentation  lesions by a network, beside the best threshold"
	@echo "make test           every test (a quarter of an hour on 2 cores)"
	@echo "make test-slow      the tests that take longer"
	@echo "make test-aot       steps compiled for TPUs and GPUs, without either"
	@echo "make test-aot-all   the same for the full product of networks and targets: a table"
	@echo "make test-lowest    a part of the tests with each library at the lowest version allowed"
	@echo "make test-newest    the same with the newest"
	@echo "make audit          known vulnerabilities of what is installed (asks the registry)"
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

# Libraries at the ends of the ranges in pyproject.toml, each in an environment of its own. The part
# of the tests reads, trains, saves and reports with all of them, and needs no reference package.
ENDS := tests/test_wheel.py tests/test_privacy.py tests/artifacts tests/data/test_data_card.py \
  tests/data/test_data_prepare.py tests/training/test_training_loop.py tests/run/test_features.py \
  tests/report/test_report.py tests/tasks/test_metrics.py
OF_TESTS := beartype hypothesis pytest 'setuptools>=77'

.venv-lowest/.installed: pyproject.toml tests/helpers/lowest.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/helpers/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint .venv-lowest/constraints.txt --editable . $(OF_TESTS)
	@touch $@

.PHONY: .venv-newest/.installed
.venv-newest/.installed:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --editable . $(OF_TESTS)

test-lowest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest -p no:cacheprovider $(ENDS)

audit: $(VENV)/.installed
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --skip-editable \
	  --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) $(AOT) .venv-lowest .venv-newest .venv-audit runs
