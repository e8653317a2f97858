# make demo          all parts running: each command line, and what it printed
# make test          the proofs; make test ARGS="--broker=docker -k part_2" chooses
# make bench         what each choice costs, in tables and pictures; make bench QUICK=1 is coarser
# make check         ruff and mypy
# make readme        write the README's code and transcripts, from the scripts and from running them
# make check-readme  compare them instead
# make clean         undo the set-up

.PHONY: demo test bench check check-readme readme setup clean

demo: setup
	@.venv/bin/python -m tests.tour

test: setup
	@.venv/bin/python -m pytest $(ARGS)

bench:
	@./setup.sh bench
	@.venv/bin/python -m tests.bench $(if $(QUICK),--quick)

check:
	@./setup.sh bench
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

check-readme: setup
	@.venv/bin/cog --check --diff -I . README.md

readme: setup
	@.venv/bin/cog -r -I . README.md

setup:
	@./setup.sh

clean:
	rm -rf .venv .setup.log .mypy_cache .pytest_cache .ruff_cache
