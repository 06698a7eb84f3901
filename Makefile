# make demo    train three adapters, compose, forget, score; then open demo/report.html
# make test    format check, lint, strict types, tests: what CI runs
# make quick   lint and the tests that load no model: a minute
# make format  put the code into the project's format
# make docs    write docs/cli.md from the command line's help
#
# Each makes .venv itself, on any machine with make and Python 3.10 or newer:
# make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test quick format docs clean
.DEFAULT_GOAL := demo

demo: $(INSTALLED)
	$(BIN)/promptcdm demo --out demo

# Two processes of one thread: most tests are too small for two threads to gain anything.
test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

quick: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/pytest -q -m "not slow and not model"

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)
	$(BIN)/python docs/make_cli_page.py > docs/cli.md

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist

# Written last, so that an installation that broke off is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "promptcdm needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
