# Tunemill: `make run` does everything, set-up included. `make help` lists the rest.

.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# What `make run` may be told: make run RECIPE=tiny UNTIL=lora SET="lora.steps=20" JOBS=2
RECIPE ?=
UNTIL ?=
SET ?=
JOBS ?=
# And `make promote`: make promote RECIPE=tiny DRY_RUN=1
DRY_RUN ?=
FORCE ?=

VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)

# Every server keeps its state here, none in the home folder, and nothing phones home.
export PREFECT_HOME ?= $(CURDIR)/work/prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
# The default run reaches no model hub. Where params.yaml names one: make run HF_HUB_OFFLINE=0
export HF_HUB_OFFLINE ?= 1

# It ends when this make does, however that happens.
driver = export TUNEMILL_MAKE=$$PPID; exec python -m flows $(if $(1),--recipe $(1)) $(if $(UNTIL),--until $(UNTIL)) $(if $(JOBS),--jobs $(JOBS)) $(foreach each,$(SET),--set $(each))

.PHONY: help setup run quick study promote label test test-all check deps lock up down ui deploy-run bench clean

help: ## this list
	@printf 'Tunemill. Usage: make TARGET\n\n'
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-11s\033[0m %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nFor promote:  RECIPE=name  DRY_RUN=1  FORCE=1 (where the champion had another test set)\n'
	@printf '\nFor run:  RECIPE=name  UNTIL=stage  JOBS=n  SET="section.key=value …"  HF_HUB_OFFLINE=0 (allow a model hub)\n'

setup: .installed ## make .venv with exactly what requirements.lock names
	@$(PYTHON) tunemill/install.py --say

# Looks every time (a tenth of a second), so that a damaged or outdated environment is never used.
.PHONY: .installed
.installed:
	@$(PYTHON) tunemill/install.py

run: .installed ## the whole lifecycle; the report is reports/report.html
	@$(call driver,$(RECIPE))

# So small a model keeps no two cores busy: two stages at a time.
quick: JOBS := $(or $(JOBS),2)
quick: .installed ## the same on a tiny model, in some four minutes
	@$(call driver,tiny)

study: .installed ## the same with the steps and test items that stronger numbers need: hours
	@$(call driver,study)

promote: .installed ## register the decision in MLflow: champion, challenger or refused (DRY_RUN=1 only says so)
	@python -m tunemill.registry $(if $(RECIPE),--recipe $(RECIPE)) $(if $(DRY_RUN),--dry-run) $(if $(FORCE),--force)

test: .installed ## unit and stage tests, two files at a time
	@pytest -m "not slow and not e2e" --numprocesses=2 --dist=loadfile --durations=10

test-all: .installed ## what `test` leaves out: end to end, kill, browser and server tests
	@pytest -m "slow or e2e" --durations=25

label: .installed ## rank answers yourself, on a page on 127.0.0.1; what you say is kept in labels/
	@python -m tunemill.labelling --completions artifacts/feedback/completions.jsonl --labels labels

check: .installed ## format, lint, types, import rules, graph, dependencies, shell, YAML, Docker
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python -m tunemill.dependencies --check
	python -m stages --check
	shellcheck .ci/run
	yamllint --strict .
	@if command -v hadolint >/dev/null; then hadolint docker/Dockerfile; else echo "hadolint has no build for this machine: skipped"; fi

deps: .installed ## write each stage's code dependencies into dvc.yaml
	@python -m tunemill.dependencies

up: .installed ## start Prefect, its worker and MLflow on 127.0.0.1
	@python -m tunemill.servers up

down: .installed ## stop what `up` started
	@python -m tunemill.servers down

ui: .installed ## MLflow only, in the foreground: compare the candidates
	@python -m tunemill.servers ui

deploy-run: .installed ## run the deployment lifecycle/local on the servers that `up` started, and watch it
	@python -m tunemill.servers deploy-run

bench: .installed ## the pipeline's time against its stages run by hand
	@python -m benchmarks.overhead

lock: .installed ## resolve pyproject.toml anew into requirements.lock
	@$(PYTHON) tunemill/install.py --lock

clean: ## remove what runs made, DVC's cache too; dvc.lock, metrics, labels and .venv stay
	@if [ -x .venv/bin/python ]; then .venv/bin/python -m tunemill.servers down; fi
	rm -rf artifacts reports/* work mlflow.db* mlartifacts dvc_plots .dvc/cache .dvc/tmp metrics/*.timing.json metrics/*/*.timing.json
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
