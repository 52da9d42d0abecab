# make quickstart   trains a small FasterViT on scanned digits and evaluates it
# make detect       trains a small DINO on digits scattered on photographs and evaluates it
# make segment      trains a small UperNet on the same images and evaluates it
# make test         lint, types and tests
# make test-slow    the tests that take too long for every change
# make docs         builds the documentation site into site/
# make wheel        builds sdist and wheel into dist/, checks them, and uses the wheel as a user would
#
# Every target makes its own virtual environment. Variables:
#   PYTHON=python3.12   the interpreter that makes it
#   VENV=.venv          its directory
#   REFERENCE=no        without torch and the official package; nothing is compared with them
#   JAX=0.10.0          this version of JAX; default: the newest
PYTHON ?= python3
VENV ?= .venv
REFERENCE ?= yes
JAX ?=
WORKDIR ?= runs/digits
DETECTION ?= runs/detect_digits
SEGMENTATION ?= runs/segment_digits

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart detect segment test test-slow lint docs wheel clean

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --weights=$(WORKDIR)
	@echo "Look at $(WORKDIR)/curves.png and $(WORKDIR)/predictions.png"

detect: $(VENV)/installed
	$(BIN)/python train.py --config=configs/detect_digits.py --workdir=$(DETECTION)
	$(BIN)/python eval.py --weights=$(DETECTION) --batch_size=16 --report=$(DETECTION)/report
	@echo "Look at $(DETECTION)/curves.png, predictions.png and report/report.html"

segment: $(VENV)/installed
	$(BIN)/python train.py --config=configs/segment_digits.py --workdir=$(SEGMENTATION)
	$(BIN)/python eval.py --weights=$(SEGMENTATION) --report=$(SEGMENTATION)/report
	@echo "Look at $(SEGMENTATION)/curves.png, predictions.png and report/report.html"

test: lint
	$(PYTEST) -m "not slow"

test-slow: lint
	$(PYTEST) -m slow

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs-installed
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/test-installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest -m slow tests/test_wheel.py

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[quickstart]' $(if $(JAX),jax==$(JAX))
	touch $@

# The official package names no versions that work together, so it is installed without its
# dependencies. Where torch cannot be installed, the tests that compare with it are left out, and the
# summary says so.
$(VENV)/test-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test,docs]' $(if $(JAX),jax==$(JAX))
ifeq ($(REFERENCE),yes)
	($(BIN)/pip install --quiet torch==2.13.0 pyyaml safetensors huggingface_hub && \
	 $(BIN)/pip install --quiet --no-deps timm==0.9.16 torchvision==0.28.0 fastervit==1.0.0 torchmetrics lightning-utilities) || \
	 echo "torch or the official package could not be installed: nothing is compared with them"
endif
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) dist site
