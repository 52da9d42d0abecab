# make quickstart   trains a small FasterViT on scanned digits and evaluates it
# make test         lint, types and tests; make test-slow: what is too long for every change
#
# Both make their own virtual environment. Variables:
#   PYTHON=python3.12   the interpreter it is made with
#   VENV=.venv          where it is made
#   REFERENCE=no        leave out torch and the official package: nothing is compared with them
PYTHON ?= python3
VENV ?= .venv
REFERENCE ?= yes
WORKDIR ?= runs/digits

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-slow lint clean

quickstart: $(VENV)/installed
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --weights=$(WORKDIR)
	@echo "Look at $(WORKDIR)/curves.png and $(WORKDIR)/predictions.png"

test: lint
	$(PYTEST) -m "not slow"

test-slow: lint
	$(PYTEST) -m slow

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[quickstart]'
	touch $@

# The official package names no versions that work together, so it comes without its dependencies.
# Where torch cannot be had, the tests that compare with it are left out, and the summary says so.
$(VENV)/test-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test]'
ifeq ($(REFERENCE),yes)
	($(BIN)/pip install --quiet torch==2.13.0 pyyaml safetensors huggingface_hub && \
	 $(BIN)/pip install --quiet --no-deps timm==0.9.16 torchvision==0.28.0 fastervit==1.0.0) || \
	 echo "torch or the official package could not be installed: nothing is compared with them"
endif
	touch $@

clean:
	rm -rf $(VENV)
