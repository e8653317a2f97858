# What a target does stands behind its name; `make help` lists it. ARGS is passed on, as in
# make test ARGS="--broker=docker -k part_2". tools/ has what the targets run, bench/ the benchmark.

PAGES = README.md bench/README.md cluster/README.md recipes/README.md

.PHONY: help demo test test-cluster check bench faults load mutants check-readme readme pictures setup clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: setup ## all parts running: each command line, and what it printed
	@.venv/bin/python -m tools.demo $(ARGS)

test: setup ## the proofs; make test ARGS="--broker=docker -k part_2" chooses
	@.venv/bin/python -m pytest --numprocesses=auto --maxschedchunk=1 $(ARGS)

test-cluster: ## the proofs on three nodes, of which some are killed; takes ARGS too
	@./setup.sh cluster
	@.venv/bin/python -m pytest --cluster $(ARGS)

check: ## style, types, and the schemas of the workflow and of docker-compose.yml
	@./setup.sh check
	@.venv/bin/python -m ruff check
	@.venv/bin/python -m ruff format --check
	@.venv/bin/python -m mypy
	@.venv/bin/python -m check_jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/tests.yml
	@.venv/bin/python -m check_jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

bench: ## what each choice costs, in tables and pictures; QUICK=1 is coarser, RESULTS=file measures nothing
	@./setup.sh $(if $(RESULTS),charts,bench)
	@$(if $(QUICK)$(RESULTS),,./setup.sh cluster || true)
	@.venv/bin/python -m bench.measure $(if $(QUICK),--quick) $(if $(RESULTS),--results=$(RESULTS)) $(ARGS)

faults: setup ## tasks and calls, while workers, servers and RabbitMQ are killed; make faults SEED=17 does it again
	@.venv/bin/python -m tools.faults $(if $(SEED),--seed=$(SEED)) $(ARGS)

load: setup ## two hundred workers and receivers, ten thousand messages: none is lost, or kept in memory
	@LOAD=100 .venv/bin/python -m pytest tests/test_load.py $(ARGS)

mutants: setup ## wrong edits of the scripts, and which test catches each; make mutants ARGS="-k name"
	@.venv/bin/python -m tools.mutants $(ARGS)

readme: setup ## write the pages' code, terminals and tables, from the scripts and from running them
	@printf '%s\n' $(PAGES) | xargs -n 1 -P 2 .venv/bin/python -m cogapp -r -I .

check-readme: setup ## compare them instead
	@printf '%s\n' $(PAGES) | xargs -n 1 -P 2 .venv/bin/python -m cogapp --check --diff -I .

pictures: ## draw the pictures from their Graphviz sources
	@./setup.sh pictures
	@.venv/bin/python -m tools.pictures

setup: ## the environment in .venv, and RabbitMQ where there is none; the other targets do this too
	@./setup.sh

clean: ## undo the set-up
	rm -rf .venv .setup.log .mypy_cache .pytest_cache .ruff_cache build *.egg-info
