# Two commands for a fresh clone with Python 3.11 to 3.13 and make:
#   make lab     the environment in .venv, then JupyterLab on notebook 00
#   make test    the environment in .venv, then all tests
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: lab figures test model lint clean

lab: $(READY)
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

figures: $(READY)  ## execute every notebook, rewrite figures/
	$(BIN)/python notebooks/execute.py

test: $(READY)
	$(BIN)/python -m pytest

model: $(READY)  ## retrain the bundled network from nothing; resumes where it was stopped
	$(BIN)/python -m riba.training

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## the environment and the caches; nothing that is committed
	rm -rf .venv data/cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" \
		|| { echo "riba needs Python 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lab,test]"
	touch $(READY)
