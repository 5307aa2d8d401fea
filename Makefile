# `make demo` and `make test` need nothing but Python 3.11+, pip and make.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= data/samples
MOS_REHEARSAL_PYTHON ?= .venv-cuda/bin/python

.PHONY: help setup demo test test-slow test-gpu test-rehearsal lint format lock eval-check

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:  ## .venv with pinned packages (CPU or CUDA, by what the machine has)
	@$(PYTHON) scripts/setup.py

demo: setup  ## train MoS on SmolLM2, evaluate it and the bare model, to a results table
	@$(BIN)/python -m mos.train -m +experiment=superni_mmlu adapter=mos,none trainer.max_steps=8
	@$(BIN)/python -m mos.summarize runs=outputs/superni_mmlu out=outputs/demo 'rows=[method.label]'

test: setup  ## the default tests: offline, CPU
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup  ## tests that take minutes
	@$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: setup  ## tests that need a GPU
	@$(BIN)/python -m pytest -m gpu

test-rehearsal:  ## the GPU's code paths without a GPU; .venv-cuda takes 9 GB (docs/gpu.md)
ifeq ($(MOS_REHEARSAL_PYTHON),.venv-cuda/bin/python)
	@MOS_VENV=.venv-cuda $(PYTHON) scripts/setup.py cuda
endif
	@$(MOS_REHEARSAL_PYTHON) -m pytest -m rehearsal tests/rehearsal

lint: setup  ## ruff (lint and format), mypy, who may import whom, and how large mos and eval may be
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/python scripts/house.py

format: setup  ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# HumanEval runs the model's programs, in the sandbox: asking for this target allows it.
EVAL_CHECK := mmlu=200 gsm8k=100 bbh=100 tydiqa=50 humaneval=20
eval-check: setup  ## build all prompts of DATA=<folder>; then evaluate SmolLM2 on some of them
	@$(BIN)/python -m mos.inspect what=prompts examples=0 paths.data_dir=$(DATA) \
	  'eval=[base,mmlu,gsm8k,bbh,tydiqa,humaneval]'
	@$(BIN)/python -m mos.evaluate adapter=none paths.data_dir=$(DATA) \
	  'benchmarks=[mmlu,gsm8k,bbh,tydiqa,humaneval]' eval.allow_code_execution=true \
	  $(foreach job,$(EVAL_CHECK),+eval.benchmarks.$(subst =,.limit=,$(job)))

lock: setup  ## resolve the lock files anew
	@$(BIN)/python scripts/lock.py
