# Two commands do everything on a machine with Python 3.11 or newer: `make serve` and `make test`.

# The first of these that runs and is new enough; empty where none is.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; \
	done)
VENV ?= .venv
BIN := $(VENV)/bin
BUF ?= npx --yes @bufbuild/buf@1.75.0
PROTOS := $(shell find protos -name '*.proto')
# `make serve ARGS='--port 50052'`, `make test ARGS=tests/server`
ARGS ?=

export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed-dev ## Make .venv with everything a developer needs

serve: model ## Set up, fetch the default model, start the server
	GRAFTWORK_COMMAND=$(BIN)/graftwork $(BIN)/graftwork serve $(ARGS)

test: setup model ## Set up, fetch the default model, run the tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not slow' $(ARGS)

test-slow: setup model ## Run the tests that take minutes, too
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

test-gpu: setup model ## Run the tests that need a CUDA device, and those of its kernels
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "test-gpu needs a CUDA device that torch can use" >&2; exit 1; }
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu $(ARGS)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/server/kernels/test_triton_low_rank.py $(ARGS)

check: lint lint-protos protos-fresh test ## All that must pass before a change lands

format: setup ## Format the code and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Check format, style, types, and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Breaking changes are looked for against main, where there is one with a contract.
lint-protos: ## Check the wire contract with buf (needs npx)
	@command -v $(firstword $(BUF)) >/dev/null || \
	  { echo "lint-protos needs npx (Debian: apt-get install npm), or BUF=/path/to/buf" >&2; exit 1; }
	$(BUF) lint
	@if git rev-parse --quiet --verify main:protos >/dev/null; then \
	  set -e; base=$$(mktemp -d); trap 'rm -rf "$$base"' EXIT; \
	  git archive main protos | tar -x -C "$$base"; \
	  cp buf.yaml "$$base"; \
	  echo "$(BUF) breaking --against main"; \
	  $(BUF) breaking --against "$$base"; \
	fi

protos: setup ## Generate client/graftwork/v1 from protos/
	$(call generate,client)

protos-fresh: setup ## Check that the generated code is what `make protos` gives
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call generate,"$$fresh"); \
	diff -r -x __init__.py -x __pycache__ "$$fresh/graftwork/v1" client/graftwork/v1 || \
	  { echo "client/graftwork/v1 is stale: run make protos" >&2; exit 1; }

generate = $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTOS)

docs-methods: setup ## Write docs/adapter-methods.md from the code
	$(BIN)/python -m docs.adapter_methods

bench-mixed: setup model ## Measure sixteen adapters in one batch against PEFT and the bare base
	$(BIN)/python -m benchmarks.bench_mixed $(ARGS)

peers: setup ## Install llama.cpp and vLLM under .peers/, for bench-peers
	$(BIN)/python -m benchmarks.peers.install

bench-peers: setup model ## Measure against llama.cpp, vLLM and PEFT in one run
	$(BIN)/python -m benchmarks.bench_peers $(ARGS)

bench-methods: setup model ## Measure batches of every adapter method against the bare base
	$(BIN)/python -m benchmarks.bench_methods $(ARGS)

bench-train: setup model ## Measure training against plain TRL and PEFT
	$(BIN)/python -m benchmarks.bench_train $(ARGS)

bench-hot: setup model ## Measure how long streams stall while an adapter is registered
	$(BIN)/python -m benchmarks.bench_hot_registration $(ARGS)

bench-journal: setup model ## Measure feedback per second, and what logging costs generation
	$(BIN)/python -m benchmarks.bench_journal $(ARGS)

bench-tiers: setup model ## Measure adapters beyond the slots, a cold adapter, and a start
	$(BIN)/python -m benchmarks.bench_tiers $(ARGS)

bench-overhead: setup model ## Measure gRPC streaming against the engine alone
	$(BIN)/python -m benchmarks.bench_overhead $(ARGS)

bench-growth: setup model ## Measure cost and memory as batch, adapters, rank, context grow
	$(BIN)/python -m benchmarks.bench_growth $(ARGS)

bench-lookup: setup model ## Measure prompt look-up where answers repeat their prompt, and where not
	$(BIN)/python -m benchmarks.bench_prompt_lookup $(ARGS)

demo: setup model ## Walk the whole loop on real data: fail, correct, train, gate, live, roll back
	$(BIN)/python -m benchmarks.demo $(ARGS)

bench-rollouts: setup model ## Measure rollouts by the server against transformers' generate
	$(BIN)/python -m benchmarks.bench_rollouts $(ARGS)

bench-preferences: setup model ## Measure DPO, KTO, ORPO and reward beside TRL (ARGS=PAIRS.jsonl.gz)
	$(BIN)/python -m benchmarks.bench_preferences $(ARGS)

bench-rlhf: setup model ## Raise a checkable reward by PPO, GRPO and RLOO, rollouts by the server
	$(BIN)/python -m benchmarks.bench_rlhf $(ARGS)

soak: setup model ## A thousand adapters for three minutes: errors and memory
	$(BIN)/python -m benchmarks.soak $(ARGS)

model: $(VENV)/.installed-server
	@$(BIN)/python -m graftwork_server.default_model

clean: ## Remove .venv and what tools left behind
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN):
	@test -n "$(PYTHON)" || \
	  { echo "Graftwork needs Python 3.11 or newer: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }

# The stamps make setting up a no-op until the list of dependencies changes. The first download is
# large; pip shows its progress.
$(VENV)/.installed-server: pyproject.toml constraints.txt | $(BIN)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[server,train]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[server,train,dev]'
	@touch $@ $(VENV)/.installed-server

.PHONY: help setup serve test test-slow test-gpu check format lint lint-protos protos protos-fresh \
	docs-methods peers bench-peers bench-mixed bench-methods bench-train bench-hot bench-journal \
	bench-lookup bench-preferences bench-rlhf bench-rollouts bench-tiers bench-overhead bench-growth \
	demo soak model clean
