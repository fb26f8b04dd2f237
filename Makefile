# What a newcomer and CI type. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROTOS := $(wildcard protos/batonmesh/v1/*.proto)
CODE := runtime actors protos tests
# Tests that need a chip run where the chip is: `pytest -m cuda`, `pytest -m neuron`.
ANYWHERE := not cuda and not neuron

.DEFAULT_GOAL := help
.PHONY: help install run test test-full lint format proto proto-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv and install Baton into it; nothing when nothing changed

$(INSTALLED): pyproject.toml scripts/system-packages
	@scripts/system-packages "$(PYTHON)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo 'Installing into $(VENV): about 2 GB, some minutes the first time.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: install ## start the mesh of configs/local.yaml, talk to it, keep serving (ARGS=--exit stops after the demo)
	$(BIN)/baton up --config configs/local.yaml --demo $(ARGS)

test: install lint ## lint, then the tests with reduced seeds and counts
	$(BIN)/pytest -m 'not slow and $(ANYWHERE)' $(ARGS)

test-full: install lint ## lint, then every test with the stated seeds and counts
	BATON_TEST_FULL=1 $(BIN)/pytest -m '$(ANYWHERE)' $(ARGS)

lint: install proto-check ## style, types, import directions, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: install ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# generate,DIRECTORY: the generated half of the package batonmesh.v1, under DIRECTORY
generate = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=protos --python_out=$(1) --mypy_out=quiet:$(1) \
	--grpc_python_out=$(1) --mypy_grpc_out=quiet,only_async:$(1) $(PROTOS)

proto: install ## regenerate batonmesh.v1 from the .proto files
	find protos/batonmesh/v1 -name '*_pb2*.py*' -delete
	$(call generate,protos)

proto-check: install ## fail when the committed batonmesh.v1 is not what its .proto files generate
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate,"$$fresh") && \
	mkdir "$$fresh/committed" && cp protos/batonmesh/v1/*_pb2* "$$fresh/committed" && \
	diff --recursive --brief "$$fresh/batonmesh/v1" "$$fresh/committed" \
	|| { echo 'The generated code has drifted from its .proto files: run `make proto`.' >&2; exit 1; }

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
