# make song: the first song. make test: the suite. Both set up .venv first; make venv does only that.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Small models lose more to threads' waiting than they gain: two processes of one thread, whose sums are the same anywhere.
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

.PHONY: venv song test test-all lint clean

venv: $(VENV)/.done

$(VENV)/.done: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

song: venv
	$(PY) sample.py

test: venv lint
	$(TEST) -m "not slow"

test-all: venv lint
	$(TEST)

lint: venv
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV)
