# `make run` searches on the embedded digits; `make test` runs the default tests. Both install first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: run test check docs test-minimum clean

run: $(VENV)/.installed
	$(BIN)/search run --budget 10cpu-minutes

# Runs of Ray take all cores and keep to a budget of seconds: they have the machine for themselves.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not gpu and not ray" -n auto --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not slow and not gpu"

check: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

# The pages that the code knows are up to date, and the site builds without a warning: build/site.
docs: $(VENV)/.installed-dev
	$(BIN)/python scripts/generate_reference.py --check
	$(BIN)/mkdocs build --strict --quiet

# The default tests with the oldest versions that pyproject.toml promises.
test-minimum: $(VENV)-minimum/.installed
	$(VENV)-minimum/bin/python -m pytest -m "not slow and not gpu and not ray" -n auto --maxprocesses 8 --dist loadfile

$(VENV)-minimum/.installed: pyproject.toml constraints-minimum.txt
	$(PYTHON) -m venv $(VENV)-minimum
	$(VENV)-minimum/bin/python -m pip install --quiet -c constraints-minimum.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-minimum build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last: an installation that was interrupted is repeated.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mixer-search needs Python 3.11 or newer as '$(PYTHON)'." \
			"Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	@echo "Installing the tested versions into $(VENV): a few gigabytes, some minutes..."
	@$(PIP) -e .
	@touch $@
	@echo "Installed."

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools into $(VENV)..."
	@$(PIP) -e '.[dev]'
	@touch $@
	@echo "Installed."
