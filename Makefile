# rollcast: `make demo` shows it, `make test` checks it. Everything stays in this folder (.venv, .venv-test, .rollcast).

PYTHON ?= python3
PORT ?= 8000
SECONDS ?=
SOAK ?= 600
SEED ?=
BIN ?= .venv-test/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check soak format bench clean

help:  ## these lines
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-8s %s\n", $$1, $$2 }'

demo: .venv/ready  ## feed real digits and sensor rows, watch them live (PORT=8000, SECONDS= to end by itself)
	@exec .venv/bin/python -I service/processes.py 0 15 .venv/bin/rollcast up --demo \
		--home .rollcast/demo --port $(PORT) --metrics-port 0 $(if $(SECONDS),--seconds $(SECONDS))

test: .venv-test/ready  ## set up everything, then check it
	@exec $(MAKE) check

check:  ## format, lint, types, layers and tests, in an environment that is set up (BIN= its bin folder)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest

format:  ## format and sort imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

soak: .venv-test/ready  ## ten minutes of rollcast chaos (SOAK= seconds, SEED=), a minute of overload
	$(BIN)/python -m service.cli chaos --seconds $(SOAK) $(if $(SEED),--seed $(SEED))
	OVERLOAD_S=60 $(BIN)/python -m pytest -s tests/system/test_overload.py

bench: .venv-test/ready  ## measure the budget's rows that exist
	$(BIN)/python -m bench.drain
	$(BIN)/python -m bench.metrics_cost

clean:  ## remove environments, caches and the demo's data
	rm -rf .venv .venv-test .rollcast/demo build dist *.egg-info .*_cache .hypothesis

# Two environments, so that the demo proves that serving needs no torch. A stamp is renewed when pyproject.toml changes.

.venv/ready: pyproject.toml
	@$(call make_venv,.venv)
	@echo "installing what serving needs (no torch) into .venv …"
	@.venv/bin/python -m pip install -qq --editable .
	@touch $@

.venv-test/ready: pyproject.toml
	@$(call make_venv,.venv-test)
	@echo "installing what training and testing need into .venv-test …"
	@.venv-test/bin/python -m pip install -qq "torch==2.13.*"
	@.venv-test/bin/python -m pip install -qq --editable ".[train,test]"
	@touch $@

define make_venv
	command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here; give one with PYTHON=… (3.11 or newer)" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) --version); expected 3.11 or newer, give one with PYTHON=…" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) -m venv does not work here: apt-get install python3-venv" >&2; exit 1; }; \
	test -x $(1)/bin/python || $(PYTHON) -m venv --clear $(1)
endef
