# Set-up, demo, checks. `make` alone lists the targets.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup hello web demo test test-all fuzz lint peers evidence clean

BIN := .venv/bin
STAMP := .venv/.installed
HELLO_STAMP := .venv/.hello

# A Python that starts (a pyenv shim may not), is a version JAX has wheels for, and can make environments.
CHECK := import ctypes, ensurepip, ssl, sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 14))
define find_python
	if [ -n "$$PYTHON" ]; then candidates=("$$PYTHON"); else \
	  pyenv=$${PYENV_ROOT:-$$(pyenv root 2>/dev/null || echo "$$HOME/.pyenv")}; \
	  candidates=(python3.12 python3.13 python3.14 python3); \
	  for minor in 12 13 14; do candidates+=("$$pyenv"/versions/3.$$minor.*/bin/python); done; \
	fi; \
	python=; \
	for candidate in "$${candidates[@]}"; do \
	  if "$$candidate" -c '$(CHECK)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: found no usable Python 3.12, 3.13 or 3.14 (tried: $${candidates[*]})." >&2; \
	  echo "Install one with its venv module (python3.12 and python3.12-venv on Debian, or pyenv install 3.12)," >&2; \
	  echo "or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
endef

define make_venv
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(find_python); \
	  echo "making .venv with $$("$$python" --version) ($$python)"; \
	  "$$python" -m venv --clear .venv || exit 1; \
	fi
endef

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything that the demo and the tests need

# The lock holds the versions that were tested; pyproject.toml says which ranges are allowed.
$(STAMP): requirements.lock pyproject.toml
	@$(make_venv)
	@echo "installing the packages of requirements.lock into .venv (a few minutes when none is cached)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[demo,test,export]'
	@touch $@

hello: $(HELLO_STAMP) ## transcribe three recordings of speech/hello, with the few packages that this needs
	@$(BIN)/python transcribe.py --artefact=models/words_micro/onnx_int8.onnx --output=words speech/hello/*.opus

# What runs an export: no JAX. `make setup` adds the rest to the same .venv.
$(HELLO_STAMP): requirements.lock
	@$(make_venv)
	@echo "installing what runs an exported model into .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock \
	  absl-py numpy onnxruntime sentencepiece soundfile soxr
	@touch $@

web: $(HELLO_STAMP) ## build runs/web, a page that recognises speech in the browser, for any static server (needs npm)
	@PYTHONPATH=. $(BIN)/python examples/web/build.py --out=runs/web

demo: $(STAMP) ## train on synthetic speech, score unseen voices, transcribe in real time
	@$(BIN)/python demo.py

test: $(STAMP) ## run the tests, less those that are slow; shapes in signatures are checked in test-all
	@CHECK_SHAPES=0 $(BIN)/python -m pytest -n 2 --dist=loadfile -m "not slow"

test-all: $(STAMP) ## run them all, those of killed processes and long compilations too
	@$(BIN)/python -m pytest -n 2 --dist=loadfile

fuzz: $(STAMP) ## read 10,000 damaged files: each is read right, or refused with one clear error
	@$(BIN)/python -m tests.fuzz

lint: $(STAMP) ## check style, formatting and types
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/python -m pyright

peers: $(STAMP) ## make .venv-peers (Python 3.11, PyTorch) for bench.py
	@$(BIN)/python -m benchmarks.peers

evidence: $(STAMP) ## make the records in results/ anew, hours (evidence.py --help): the same again goes on where it stopped
	@$(BIN)/python evidence.py

clean: ## remove the environments and caches, keep runs/
	rm -rf .venv .venv-peers build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
