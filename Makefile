# `make demo` and `make test` set everything up by themselves; README.md spells the same commands out without make.
.PHONY: help setup demo demo-seeds demo-models test test-slow test-faults bench bench-growth docs lint audit licences format requirements
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
# Without bytecode, each of many short processes would compile torch and the other libraries again, for ten seconds.
WITH_BYTECODE := env -u PYTHONDONTWRITEBYTECODE

help:               ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

setup:              ## make .venv from the pinned requirements; does nothing if it is up to date
	@$(PYTHON) tools/setup.py

demo: setup         ## run the whole pipeline on the demo world, print the table, print the report's path
	@$(WITH_BYTECODE) dvc repro
	@cvsi show demo-tiny

demo-seeds: setup   ## draw the demo world with two other seeds and run everything on each
	@python -m demo.seeds

demo-models: setup  ## train the demo's five tiny models from scratch (about 40 minutes on 2 cores)
	@python -m demo.train

test: setup         ## run the tests, every stage for real once (9 minutes on 2 cores)
	@$(WITH_BYTECODE) python -m pytest

test-slow: setup    ## the long tests: large models (9 GB of memory), property tests with all their examples, variants
	@$(WITH_BYTECODE) CVSI_TEST_FULL=1 python -m pytest -n 0 -m slow -rP

test-faults: setup  ## kill every stage 26 times while it writes, fill disks, damage files, remove models (half an hour)
	@$(WITH_BYTECODE) python -m pytest -s -m faults tests/faults; code=$$?; python -m tests.faults.table; exit $$code

bench: setup        ## time each stage against a plain loop and the floor (under 20 minutes on 2 cores)
	@python -m benchmarks

bench-growth: setup ## time and memory of each stage against the number of images (about half an hour)
	@python -m benchmarks.growth --plot docs/growth.png
	@python -m benchmarks.scores --growth

docs: setup         ## build the documentation as a site, print its first page's path
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet
	@echo "file://$(CURDIR)/site/index.html"

lint: setup         ## formatting, lint, types; a line on known vulnerabilities
	@ruff format --check .
	@ruff check .
	@mypy
	@python tools/audit.py --warn

audit: setup        ## check the pinned requirements for known vulnerabilities (needs a network)
	@python tools/audit.py

licences: setup     ## write docs/licences.md, the licences of all dependencies
	@python tools/licences.py

format: setup       ## format the code
	@ruff format .
	@ruff check --fix .

requirements: setup ## compile requirements/*.txt from pyproject.toml
	@tools/compile_requirements.sh
