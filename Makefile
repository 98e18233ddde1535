# make book   make the environment, build the HTML from stored outputs, say where it is
# make test   the same environment, every test
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# For example: make book TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
STAMP   = $(VENV)/.installed

.PHONY: book test lab execute bench serve lint clean

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	    $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

book: $(STAMP)
	$(BIN)/jupyter-book build . -W -n --keep-going -q
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

test: book
	$(BIN)/python -m pytest
