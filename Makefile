# make demo and make test do all the set-up there is on a fresh machine: a virtual environment of the versions in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check kernels forced lint format types docs laws benchmarks nightly wheel clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("updsl needs Python 3.11 or later; this is %d.%d: make PYTHON=python3.11 …" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[plot,dev]'
	@touch $@

demo: $(READY) ## train a small model three ways: no clipping, clip_grad_norm_, a rule
	$(BIN)/updsl train

test: check ## everything: lint, format, types, tests
check: lint types $(READY) ## the same; the laws and examples in rules/ are tests
	$(BIN)/python -m pytest -q -n $(WORKERS)
	$(MAKE) kernels

kernels: $(READY) ## the tests of steps in training, in C++ kernels
	UPDSL_BACKEND=cpp $(BIN)/python -m pytest -q -n $(WORKERS) tests/test_api.py tests/test_attach.py tests/test_atomicity.py tests/test_optimizer.py

forced: $(READY) ## all tests in each backend that is here, one after the other; an hour and more
	for backend in torch cpp $$($(BIN)/python -c 'import importlib.util; print("triton" if importlib.util.find_spec("triton") else "")'); do \
		echo "UPDSL_BACKEND=$$backend"; \
		TRITON_INTERPRET=1 UPDSL_BACKEND=$$backend $(BIN)/python -m pytest -q -n $(WORKERS) --timeout=3600 || exit 1; done

lint: $(READY) ## ruff, and whether the code is formatted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## pyrefly
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(READY) ## format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

docs: $(READY) ## write docs/rules, the gallery of the library
	$(BIN)/python docs/write_gallery.py

laws: $(READY) ## decide all laws of the library, try them on wrong variants: writes docs/laws.md
	$(BIN)/python docs/write_laws.py

benchmarks: ## measure everything, an hour; writes docs/performance.md
	PYTHON=$(PYTHON) benchmarks/other_venv.sh
	.venv-bench/bin/python -m benchmarks

nightly: $(READY) ## the tests with many more random examples
	$(BIN)/python -m pytest -q -n $(WORKERS) --timeout=3600 --hypothesis-profile=nightly --updsl-profile=nightly

wheel: $(READY) ## build dist/updsl-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove what the other targets made
	rm -rf $(VENV) dist .pytest_cache .hypothesis .ruff_cache train-result
