PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed  ## search the weights of two bundled policies, small budget
	$(BIN)/gpc search env=pusht 'policies=[pusht-diffusion,pusht-flow]' search=grid search.episodes=20 report.episodes=50 run_dir=runs/demo

test: .venv/installed lint  ## everything that CI runs
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
