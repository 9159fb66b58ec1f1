PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-gpu lint clean

demo: .venv/demo  ## search the weights of two bundled policies, small budget
	$(BIN)/gpc search env=pusht 'policies=[pusht-diffusion,pusht-flow]' search=grid search.episodes=20 report.episodes=50 run_dir=runs/demo

test: .venv/dev lint  ## everything that CI runs
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: .venv/dev  ## the tests that need a CUDA card
	$(BIN)/pytest -m gpu -rs

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/wording.py
	$(BIN)/mypy

.venv/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	touch $@

.venv/demo: EXTRAS = pusht,report
.venv/dev: EXTRAS = dev
# the tests talk to gpc serve through openpi's own client, which pins numpy<2 and runs on 2.2
.venv/dev: AFTER = $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --no-deps openpi-client
.venv/demo .venv/dev: .venv/uv pyproject.toml constraints.txt  # all of gpc is large (LeRobot): the demo does without
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'
	$(AFTER)
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
