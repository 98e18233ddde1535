# The whole project in two commands, each of which makes the environment first if need be:
#
#   make book      build the HTML from the stored outputs and say where it is
#   make test      every test: library, notebooks, the built site
#
# and, for those who want the book in another form:
#
#   make formats   PDF, EPUB, Markdown, the notebooks with and without solutions, the site as an
#                  archive: downloads of the built site, all of them or none
#
# and, for those who work on it:
#
#   make check     the tests of `make test`, of the site as it was last built
#   make quick     style, types and the tests that take no browser and no notebook
#   make lab       open copies of the chapters in JupyterLab, with live sliders, to write in
#   make execute   run the notebooks again and store their outputs
#   make bench     the speed of exact gradients and measurements, as ratios
#   make serve     serve the built book at http://localhost:8000
#   make sniffer   a script from npm with which the site tests judge accessibility a second time
#   make release   the formats, and then what a release has to pass beside the tests: epubcheck,
#                  every notebook of the archives, wheel and sdist in environments that have nothing
#                  else, and the road without make
#   make reliable  what a release promises of the whole: outputs that no order of the files, thread
#                  or processor decides, executions that give the stored bytes, links that lead
#                  somewhere; and its times, beside those to reach
#   make lint      check the style, the form and the types of the code
#   make format    bring the code into its form
#   make clean     remove what was built (not the environment)
#
# Variables:  PYTHON=python3.12   the Python that makes the environment (3.11 or newer)
#             TORCH_INDEX=https://download.pytorch.org/whl/cpu   where PyTorch comes from
#             TESTS="-m 'not site'"   what pytest is given
#             RELIABLE="--part links"   what `make reliable` is given; --help has more
#             JOBS=2   test processes, a file to each; one for each core if not given
#             CHECKS="package road"   of `make release`, these alone; --cuda among them tries builds
#                                     of PyTorch that bring CUDA, too

PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
TESTS       ?=
RELIABLE    ?=
JOBS        ?= auto
CHECKS      ?=
BIN         := $(VENV)/bin
INSTALLED   := $(VENV)/.installed
PIP         := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What Python compiles is kept: hundreds of processes of the tests import the same modules.
unexport PYTHONDONTWRITEBYTECODE

# One thread for each process, and a notebook stays with its process: its cells share a kernel.
PYTEST      := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 \
               --dist loadfile --no-loadscope-reorder

.PHONY: book test check formats release reliable quick lab execute bench serve sniffer lint format clean

book: $(INSTALLED)
	@$(BIN)/jupyter-book build . -W -n --keep-going -q
	@$(BIN)/python book/tools/formats --link
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: book
	$(PYTEST) $(TESTS)

check: $(INSTALLED)
	$(PYTEST) $(TESTS)

formats: book
	$(BIN)/python book/tools/formats

release: book
	$(BIN)/python book/tools/release $(CHECKS)

reliable: book
	$(BIN)/python book/tools/reliable $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS)) $(RELIABLE)

quick: lint
	$(PYTEST) tests/library tests/book tests/support -m "not site and not slow" $(TESTS)

lab: book
	@$(BIN)/python book/tools/lab.py
	JUPYTER_CONFIG_PATH="$(CURDIR)/book/tools/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
	    $(BIN)/jupyter lab notebooks/index.ipynb

execute: $(INSTALLED)
	$(BIN)/python book/tools/execute.py

bench: $(INSTALLED)
	$(BIN)/python -m sbnlib.experiments.bench

serve: book
	@echo "The book: http://localhost:8000 (stop with Ctrl-C)"
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

sniffer:
	@$(PYTHON) tests/site/sniffer.py

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf _build build .pytest_cache .ruff_cache .mypy_cache .hypothesis

# PyTorch first and from its own index if one is given; then everything that is pinned, and sbnlib
# itself, editable. A change of either file makes this run again.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "Python 3.11 or newer is needed; try: make book PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "Making the environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing what requirements.txt pins (a few minutes the first time)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)
	@$(PIP) -r requirements.txt
	@touch $@
