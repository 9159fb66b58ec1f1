# any Python from 3.11 to 3.13: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints.txt,constraints-3.12.txt)
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS)

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

.venv/uv-$(VERSION): scripts/debian.sh
	@case '$(VERSION)' in 3.11|3.12|3.13) ;; *) echo 'gpc needs Python 3.11 to 3.13, $(PYTHON) is "$(VERSION)": make PYTHON=python3.12 ...' >&2; exit 1;; esac
	scripts/debian.sh $(PYTHON)
	ls .venv/lib/python$(VERSION) > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) uv
	touch $@

.venv/demo: .venv/uv-$(VERSION) pyproject.toml $(CONSTRAINTS)  # all of gpc is large: the demo does with what README's first commands need
	$(INSTALL) -e '.[pusht,report,deploy]'
	touch $@

# the tests talk to gpc serve through openpi's own client, which pins numpy<2 and runs on 2.2; praxis-robomimic pins what LeRobot 0.6 outgrew
.venv/dev: .venv/uv-$(VERSION) pyproject.toml $(CONSTRAINTS)
	scripts/debian.sh $(PYTHON) draw
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps openpi-client praxis-robomimic
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
