# Every recipe is a line that a person could type; `make demo` and `make test` install what they need.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
# With an NVIDIA driver: torch's CUDA build, from the default index. Without: the CPU build, from PyTorch's index.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
ifeq ($(HAS_GPU),yes)
  PINS := -c configs/constraints/cuda.txt
else
  PINS := -c configs/constraints/cpu.txt
  TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
endif

# The software of a GPU host without network (configs/constraints/visit.txt), with Python 3.12 if one runs here: on PATH
# may be a shim for a Python that is not installed.
VISIT := .venv-visit
VISIT_PYTHON = $(shell for python in python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python3.12 $(PYTHON); do \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null && { echo "$$python"; break; }; done)

# The wheel is tried with the newest other Python that pyproject.toml names, outside the source tree.
OTHER := .venv-other
OTHER_PYTHON = $(shell for python in python3.13 $(HOME)/.pyenv/versions/3.13*/bin/python3.13 \
	python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python3.12; do \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null && { echo "$$python"; break; }; done)
OTHER_TESTS := test_api.py test_readme.py::test_a_snippet_runs_as_it_stands cli data config predict \
	train/test_checkpoint.py train/test_optim.py generate/test_faults.py

# gpu-run uses the Python that is there: a GPU host may have no network to install from.
MEASURING := PYTHONPATH=".:$$PYTHONPATH" $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)

.PHONY: help venv demo test test-slow test-all lint bench-cpu bench-bf16 bench-data bench-generate bench-train fuzz torture mutants compile-check wheel-check visit-venv gpu-kit gpu-rehearsal gpu-run clean

help:
	@echo "make demo         the whole pipeline on simulated images, with a table and a report; 9 to 12 minutes on two Intel Xeon cores"
	@echo "make venv         only the installation, into .venv"
	@echo "make lint         ruff"
	@echo "make test         the quick tests; no GPU needed"
	@echo "make test-slow    the slow tests; make test-all runs both"
	@echo "make fuzz         23,000 damaged inputs: each must be read right, skipped or refused; 6 minutes"
	@echo "make torture      1,045 faults: kills, damaged files, full disks, hangs, races, jumping clocks; 20 to 30 minutes"
	@echo "make mutants      246 faults put into the source, one at a time: the tests must notice each; 10 minutes"
	@echo "make bench-cpu    every op on this CPU against eager torch and torch.compile, one thread"
	@echo "make bench-bf16   sampling and training steps on this CPU in bf16 against fp32; bars where it has AMX"
	@echo "make bench-data   the codecs of soft labels, and the loader against webdataset"
	@echo "make bench-generate  seconds per 64 pairs against diffusers, eager and compiled; with as many calls, and at equal quality"
	@echo "make bench-train  a step of the teacher against a plain PyTorch DDP loop; two students side by side"
	@echo "make compile-check  compiles every GPU kernel for three architectures; needs nvcc, no GPU"
	@echo "make wheel-check  installs the wheel for another Python (3.13 or 3.12), runs the pipeline and some tests; 3 minutes"
	@echo "make visit-venv   the software of a GPU host without network, into .venv-visit; 5 GB. compile-check then uses it too"
	@echo "make gpu-kit      packs what such a host lacks into .gpu_kit; needs nvcc, no GPU; 5 minutes the first time"
	@echo "make gpu-rehearsal  runs the kit and the benchmarks of a visit on this CPU, with planted faults; 2 minutes"
	@echo "make gpu-run      needs a GPU: checks and races all kernels and nets; 6.5 minutes. ARGS=--second: the second visit"

venv: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml setup.py configs/constraints/cpu.txt configs/constraints/cuda.txt $(shell find csrc -type f)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; on Debian: apt-get install python3.11 python3.11-venv python3.11-dev g++"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip wheel setuptools
	$(BIN)/pip install -q $(PINS) $(TORCH_INDEX) torch torchvision numpy
	$(BIN)/pip install -q $(PINS) --no-build-isolation -e '.[train,encoders,rivals,eval,geo,dev]'
	touch $@

demo: venv
	$(BIN)/python launch/pipeline.py --config configs/demo.yaml

# Two test files at once: most tests use one core.
PYTEST = $(BIN)/python -m pytest -q -n 2 --dist loadfile

test: venv
	$(PYTEST) -m "not slow"

test-slow: venv
	$(PYTEST) -m slow

test-all: venv
	$(PYTEST)

# DAKD_FUZZ: bad inputs per test.
fuzz: venv
	DAKD_FUZZ=$${DAKD_FUZZ:-500} $(BIN)/python -m pytest -q tests/fuzz

# ARGS="--only train --scale 0.1 --seed 3" runs a part; the table in results/ is of a whole run.
torture: venv
	$(BIN)/python tests/torture/run.py $(or $(ARGS),--out benchmarks/results/torture.md)

# ARGS="--only metrics" tries a part; the table in tests/README.md is of a whole run.
mutants: venv
	$(BIN)/python tests/mutants/run.py $(or $(ARGS),--out tests/README.md)

lint: venv
	$(BIN)/ruff check .

bench-cpu: venv
	$(BIN)/python benchmarks/bench_cpu.py $(ARGS)

# ARGS="--threads 2 --only sample" runs a part with two threads.
bench-bf16: venv
	$(BIN)/python benchmarks/models/bench_bf16_cpu.py $(ARGS)

# ARGS="--shards RUN/generate" uses the logits of a trained teacher.
bench-data: venv
	$(BIN)/python benchmarks/data/bench_codec.py $(ARGS)
	$(BIN)/python benchmarks/data/bench_loader.py

# ARGS="--only small --device cuda --precision bf16" races one net on a GPU.
bench-generate: venv
	$(BIN)/python benchmarks/models/bench_generate.py $(ARGS)

bench-train: venv
	$(BIN)/python benchmarks/models/bench_train.py $(ARGS)
	$(BIN)/python benchmarks/models/bench_students.py

visit-venv: $(VISIT)/bin/.installed

$(VISIT)/bin/.installed: configs/constraints/visit.txt
	@test -n "$(VISIT_PYTHON)" || { echo "no Python 3.12 and no $(PYTHON) that can make an environment"; exit 1; }
	test -x $(VISIT)/bin/python || $(VISIT_PYTHON) -m venv $(VISIT)
	@$(VISIT)/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || \
		echo "$(VISIT) has $$($(VISIT)/bin/python --version): a GPU host has Python 3.12, which is not installed here"
	@{ $(VISIT)/bin/pip install -q --upgrade pip && $(VISIT)/bin/pip install -q -r $<; } || \
		{ echo "$(VISIT) cannot be installed (is there a network, and 5 GB of disk?); pip's output is above"; exit 1; }
	touch $@

# Both pairs of torch's headers and Triton, even if the first one fails.
compile-check: venv
	@status=0; \
	$(BIN)/python benchmarks/compile_check.py $(ARGS) || status=1; \
	if test -e $(VISIT)/bin/.installed; then $(VISIT)/bin/python benchmarks/compile_check.py $(ARGS) || status=1; \
	else echo "not checked: torch 2.11 and Triton 3.6, because $(VISIT) does not exist (make visit-venv)"; fi; \
	exit $$status

$(OTHER)/bin/.installed: pyproject.toml configs/constraints/cpu.txt configs/constraints/cuda.txt
	test -x $(OTHER)/bin/python || $(OTHER_PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install -q $(PINS) $(TORCH_INDEX) torch '.[train]' pytest hypothesis
	touch $@

# Without such a Python or a network this is skipped with a message. Tests are copied, because dakd/ lies next to them.
wheel-check: venv
	@test -x $(OTHER)/bin/python -o -n "$(OTHER_PYTHON)" || \
		{ echo "wheel-check: no Python 3.13 or 3.12 here can make an environment; not tried"; exit 0; }; \
	make -s $(OTHER)/bin/.installed || \
		{ echo "wheel-check: $(OTHER) cannot be installed (is there a network?); pip says why above; not tried"; exit 0; }; \
	set -e; rm -rf build/wheel; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel .; \
	$(OTHER)/bin/pip install -q --force-reinstall --no-deps build/wheel/*.whl; \
	mkdir "$$folder/empty"; cp -r tests configs pyproject.toml README.md "$$folder"; bin=$$PWD/$(OTHER)/bin; unset PYTHONPATH; \
	cd "$$folder/empty"; $$bin/dakd doctor; $$bin/dakd pipeline --config smoke; test -s runs/smoke/report/index.html; \
	cd ..; $$bin/pytest -q -p no:cacheprovider -m "not slow" $(addprefix tests/,$(OTHER_TESTS))

gpu-kit: visit-venv
	$(VISIT)/bin/python benchmarks/gpu/kit.py

gpu-rehearsal: venv gpu-kit
	$(BIN)/python -m pytest -q tests/benchmarks/test_gpu_rehearsal.py

# ARGS="--device cpu --tiny" tries it without a GPU.
gpu-run:
	$(MEASURING) benchmarks/gpu_run.py $(ARGS)

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache
