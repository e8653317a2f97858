# make demo          all parts running: each command line, and what it printed
# make test          the proofs; make test ARGS="--broker=docker -k part_2" chooses
# make test-cluster  the proofs on three nodes, of which some are killed; ARGS as above
# make mutants       wrong edits of the scripts, and which test catches each; takes ARGS too
# make bench         what each choice costs, in tables and pictures; make bench QUICK=1 is coarser
# make faults        tasks and calls, while what can be killed is; make faults SEED=17 does it again
# make load          two hundred workers and receivers, ten thousand messages, and memory
# make check         ruff, mypy, and the schemas of the workflow and of docker-compose.yml
# make readme        write the README's code and transcripts, from the scripts and from running them
# make check-readme  compare them instead
# make pictures      draw the pictures from their Graphviz sources
# make screenshot    take the picture of the management page, while workers work
# make clean         undo the set-up

.PHONY: demo test test-cluster mutants bench faults load check check-readme readme pictures screenshot setup clean

demo: setup
	@.venv/bin/python -m tools.demo

test: setup
	@.venv/bin/python -m pytest -p no:rerunfailures --numprocesses=auto --maxschedchunk=1 $(ARGS)

mutants: setup
	@.venv/bin/python -m tools.mutants $(ARGS)

test-cluster:
	@./setup.sh cluster
	@.venv/bin/python -m pytest --cluster $(ARGS)

bench:
	@./setup.sh bench
	@$(if $(QUICK),,./setup.sh cluster || true)
	@.venv/bin/python -m bench.measure $(if $(QUICK),--quick)

faults: setup
	@.venv/bin/python -m tools.faults $(if $(SEED),--seed=$(SEED)) $(ARGS)

load: setup
	@.venv/bin/python -m tools.load $(ARGS)

check:
	@./setup.sh check
	@.venv/bin/python -m ruff check
	@.venv/bin/python -m ruff format --check
	@.venv/bin/python -m mypy
	@.venv/bin/python -m check_jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/tests.yml
	@.venv/bin/python -m check_jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

check-readme: setup
	@.venv/bin/python -m cogapp --check --diff -I . README.md

readme: setup
	@.venv/bin/python -m cogapp -r -I . README.md

pictures:
	@./setup.sh pictures
	@.venv/bin/python -m tools.pictures

screenshot:
	@./setup.sh screenshot
	@.venv/bin/python -m tools.screenshot $(ARGS)

setup:
	@./setup.sh

clean:
	rm -rf .venv .setup.log .mypy_cache .pytest_cache .ruff_cache
