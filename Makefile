# make demo    all parts running: each command line, and what it printed
# make test    the proofs; make test ARGS="--broker=docker -k part_2" chooses
# make check   ruff and mypy
# make clean   undo the set-up

.PHONY: demo test check setup clean

demo: setup
	@.venv/bin/python -m tests.tour

test: setup
	@.venv/bin/python -m pytest $(ARGS)

check: setup
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

setup:
	@./setup.sh

clean:
	rm -rf .venv .setup.log .mypy_cache .pytest_cache .ruff_cache
