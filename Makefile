# `make opticalrs` and `make test` do everything, installing included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build

.PHONY: install check test soak bench bench-stream docs opticalrs clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py tests/test_public.py

test: check
	$(BIN)/pytest -q -n 2 --dist loadfile

soak: install
	$(BIN)/pytest -q -m soak

bench: install
	$(BIN)/python bench/cut.py
	$(BIN)/python bench/dedup.py
	$(BIN)/python bench/contain.py --held 4000 --tiles 112
	$(BIN)/python bench/engine.py
	$(BIN)/python bench/scale.py --quick
	$(BIN)/python bench/report.py
	$(BIN)/python bench/evaluate.py
	$(BIN)/python bench/raw.py
	$(BIN)/python bench/pretrain.py --quick
	$(BIN)/python bench/browse.py --quick

bench-stream: install
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench,peers]'
	$(BIN)/python bench/stream.py

docs: install
	mkdir -p $(BUILD)
	$(BIN)/datakit manifest table > $(BUILD)/collections.md
	cp $(BUILD)/collections.md docs/collections.md

# The main job: the embedded collection, built by the recipe that real data runs, then scored against what was planted.
opticalrs: install
	test -f $(BUILD)/collection/truth.json || $(BIN)/datakit synth opticalrs $(BUILD)/collection
	$(BIN)/datakit protect sign $(BUILD)/collection/heldout -o $(BUILD)/heldout.parquet
	$(BIN)/datakit build recipes/opticalrs.yaml --data $(BUILD)/collection --out $(BUILD)/opticalrs --allow-missing \
		--protect $(BUILD)/heldout.parquet
	$(BIN)/datakit synth check $(BUILD)/opticalrs $(BUILD)/collection

clean:
	rm -rf $(BUILD)
