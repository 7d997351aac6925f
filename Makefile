SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ARGS ?=
PYTEST_ARGS ?=
TOOLRL ?= https://github.com/qiancheng0/ToolRL.git

.PHONY: help setup train eval test sweep compare format lint api-bank bench tiny-policy lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | while IFS= read -r line; do \
		printf '  %-12s %s\n' "$${line%%:*}" "$${line##*## }"; done

setup: $(STAMP) ## Make .venv and install the pinned requirements (all targets do this first)

train: $(STAMP) ## Train: make train ARGS="experiment=qwen3_8b trainer.devices=8"
	$(RUN) src/train.py $(ARGS)

eval: $(STAMP) ## Evaluate: make eval ARGS="policy=tiny benchmark=[synthetic]"
	$(RUN) src/eval.py $(ARGS)

test: $(STAMP) ## Run the tests: make test PYTEST_ARGS="-k rollout"
	$(RUN) -m pytest $(PYTEST_ARGS)

sweep: $(STAMP) ## Search hyperparameters with Optuna over the tiny policy
	$(RUN) src/train.py -m hparams_search=tiny $(ARGS)

compare: $(STAMP) ## Compare methods over seeds: make compare ARGS="algorithm=rest,grpo seed=1,2"
	folder=logs/compare/$$(date +%Y-%m-%d_%H-%M-%S) && \
	$(RUN) src/train.py -m hparams_search=compare hydra.sweep.dir="$$folder" $(ARGS) && \
	$(RUN) src/compare.py "runs=[$$folder]"

format: $(STAMP) ## Format the code and fix what can be fixed
	$(RUN) -m ruff check --fix --exit-zero .
	$(RUN) -m ruff format .

lint: $(STAMP) ## Check style, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

api-bank: ## Fetch API-Bank's test set (needs git and a network) into data/api_bank
	mkdir -p data/api_bank && folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	git clone --quiet --depth 1 --filter=blob:none --sparse "$(TOOLRL)" "$$folder" && \
	git -C "$$folder" sparse-checkout set --no-cone '/benchmarks/API-Bank/*.json' && \
	cp "$$folder"/benchmarks/API-Bank/level-*-api_processed.json data/api_bank/

bench: $(STAMP) ## Print how fast the parts are, as ratios
	$(RUN) -m tests.benchmarks $(ARGS)

tiny-policy: $(STAMP) ## Train the tiny policy that comes with the project anew
	$(RUN) -m src.models.tiny_policy $(ARGS)

# Installs without the old constraints, then keeps what pyproject.toml does not pin itself.
lock: ## Resolve pyproject.toml anew and write .constraints.txt
	PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --no-warn-conflicts --upgrade --editable '.[dev]'
	{ echo '# What the versions in pyproject.toml resolved to, written by `make lock`.'; \
	  $(RUN) -m pip freeze --all --exclude-editable --exclude setuptools | sed -E 's/\+cpu$$//' | tr 'A-Z_' 'a-z-' \
	    | grep -vxFf <(grep -oE '"[^" ]+==[0-9][^"]*"' pyproject.toml | tr -d '"' | tr 'A-Z_' 'a-z-'); } > .constraints.txt

clean: ## Remove caches; runs in logs/ and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The first Python 3.11 that runs, unless .venv has one already.
$(STAMP): pyproject.toml .constraints.txt
	@is_311='import sys; sys.exit(sys.version_info[:2] != (3, 11))'; \
	if [ -x $(RUN) ]; then \
		$(RUN) -c "$$is_311" || { echo "$(VENV) is not Python 3.11: found $$($(RUN) --version). Remove it and try again." >&2; exit 1; }; \
	else \
		for python in python3.11 python3 python; do \
			if "$$python" -c "$$is_311" 2>/dev/null; then echo "Making $(VENV) with $$python"; "$$python" -m venv $(VENV); break; fi; \
		done; \
		[ -x $(RUN) ] || { echo "Python 3.11 is needed, found: $$(python3 --version 2>&1 || true). Install it and its venv module, and try again." >&2; exit 1; }; \
	fi
	$(RUN) -m pip install --quiet --upgrade --constraint .constraints.txt pip
	PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --no-warn-conflicts --constraint .constraints.txt --editable '.[dev]'
	$(RUN) -m pip install --quiet --no-deps --group no-deps
	@touch $@
