# Two commands for a fresh clone with Python 3.11 to 3.13 and make:
#   make lab     the environment in .venv, then JupyterLab on notebook 00
#   make test    the environment in .venv, then all tests
PYTHON ?= python3
EXTRAS ?= lab,test
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready

.PHONY: lab html slides photos figures test browser model readout evaluation photos-evaluation lint clean

lab: $(READY)
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

html: $(READY)  ## the series to read without installing: site/_build/html/index.html
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS),site]"
	rm -rf site/_build/html site/_build/doctrees
	$(BIN)/python -m sphinx -q -n -W --keep-going -c site -d site/_build/doctrees . site/_build/html

slides: $(READY)  ## 00 to 07 for a lecture: site/_build/slides; REVEAL=address of another reveal.js
	$(BIN)/jupyter nbconvert notebooks/0[0-7]*.ipynb --to slides --output-dir site/_build/slides \
		--template slides --TemplateExporter.extra_template_basedirs=site --no-prompt \
		--TagRemovePreprocessor.remove_input_tags=hide-input --log-level ERROR \
		--SlidesExporter.reveal_width=1280 --SlidesExporter.reveal_height=720 \
		--SlidesExporter.reveal_number=c/t $(if $(REVEAL),--reveal-prefix $(REVEAL))

photos: $(READY)  ## photographs with masks, out of Debian's packages (320 MB, once): data/README.md
	$(BIN)/python -m tools.photos

figures: $(READY)  ## execute every notebook, rewrite figures/
	$(BIN)/python notebooks/execute.py

test: $(READY)  ## says how to run the tests that need a browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/browser -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	@echo "the panels were not driven in a browser: install Chromium, then \`make browser\`"

browser: $(READY)  ## JupyterLab in headless Chromium: every notebook run, every control moved
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS),browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser -n $(WORKERS) --no-loadscope-reorder

model: $(READY)  ## retrain the bundled network from nothing; resumes where it was stopped
	$(BIN)/python -m tools.training

readout: $(READY)  ## retrain the readout bottleneck (a quarter of an hour)
	$(BIN)/python -m tools.training readout

evaluation: $(READY)  ## every method on 200 test scenes: data/*.csv and what quotes them; resumes
	$(BIN)/python -m tools.evaluation --pairs 100 --slow 30 --slow-pairs 30 \
		--blur 4 8 --workers $(WORKERS) --tables data
	$(BIN)/python -m tools.pages

photos-evaluation: $(READY)  ## the same on photomontages: data/photos_*; resumes; needs `make photos`
	$(BIN)/python -m tools.evaluation --network efficientnet-lite0 --data photos --top 5 \
		--scenes 200 --faithful 48 --pairs 100 --slow 16 --blur 4 8 \
		--slow-methods input-iba input-iba-nats integrated-gradients smoothgrad occlusion \
		--pair-methods iba iba-joint relevance-iba relevance-iba-joint relevance-iba-cascade \
		relevance-iba-detail capacity-product-squared capacity-product-separate \
		relevance-iba-detail-separate capacity-product-squared-separate deeplift \
		lrp-epsilon-plus lrp-epsilon-gamma-box guided-backprop grad-cam guided-grad-cam \
		input-x-gradient edges oracle random \
		--workers $(WORKERS) --tables data
	$(BIN)/python -m tools.pages

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## the environment and the caches; nothing that is committed
	rm -rf .venv data/cache site/_build

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" \
		|| { echo "riba needs Python 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $(READY)
