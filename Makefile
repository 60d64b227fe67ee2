# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# a process a core; a file's tests stay together, for they share what is slow to make
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo serve notebook test quick check format docs clean

demo: $(VENV)/.installed
	$(BIN)/glassgpt demo

# MODEL: a model directory, or a name such as gpt2; without it the newest demo's, which is made where there is none
serve: $(VENV)/.installed-server
	@model="$(MODEL)"; \
	if [ -z "$$model" ]; then \
		model=$$(ls -dt runs/demo*/ 2>/dev/null | head -n 1); \
		if [ -z "$$model" ]; then $(BIN)/glassgpt demo && model=runs/demo; fi; \
	fi; \
	exec $(BIN)/glassgpt serve "$${model%/}"

notebook: $(VENV)/.installed-notebook
	$(BIN)/jupyter lab src/attention_implementation.ipynb

test: check
	$(PYTEST)

quick: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed
	$(BIN)/python docs/render_cli.py > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	$(BIN)/python docs/render_api.py > docs/api.md.new && mv docs/api.md.new docs/api.md
	$(BIN)/python docs/map_doors.py

# torch comes first and pinned: an unpinned one brings gigabytes of GPU libraries to a machine without a GPU
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-server: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[server]"
	touch $@

$(VENV)/.installed-notebook: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebook]"
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
