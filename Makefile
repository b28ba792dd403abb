# `make` alone lists what there is. Everything installs into .venv first, and again only when its inputs change.
# Bytecode is compiled once, there: where PYTHONDONTWRITEBYTECODE is set, every start would cost half a minute else.
.DEFAULT_GOAL := help
.PHONY: help demo test check lock clean

# A uv that answers (a pyenv shim may be on the PATH and not work), else one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
EVERYTHING := .venv/.everything
# With pip (--seed): without its own, the README's `pip install -e '.[medical]'` would fill another Python.
INSTALL = $(UV) venv --quiet --seed --allow-existing --python 3.12 .venv && \
	$(UV) pip install --quiet --compile-bytecode --python .venv -c constraints.txt

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## train on synthetic phantoms, export to ONNX and TFLite, verify, report (about 3 minutes)
	$(PYTHON) -m brainq_torch.fit --resume
	$(PYTHON) -m export runs/quickstart --force
	$(PYTHON) -m tools.study --config configs/study_quick.yaml --out runs/study_demo \
		--models.mobilenetv2.run runs/quickstart --models.mobilenetv2.export runs/quickstart/export \
		--only mobilenetv2 mobilenetv2_fp16 mobilenetv2_int8_ptq --gradcam=

test: $(EVERYTHING)  ## lint, types and every test (under 10 minutes on 2 cores)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	.venv/bin/lint-imports
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n 2 --dist loadfile

check: $(EVERYTHING)  ## format, lint, types and the fast tests
	$(PYTHON) -m ruff format
	$(PYTHON) -m ruff check --fix
	.venv/bin/lint-imports
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -m "not slow"

lock: | $(filter .uv/bin/uv,$(UV))  ## pin every package in constraints.txt anew
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.12 \
		--no-emit-index-url --no-header --no-annotate --upgrade -o constraints.txt

clean:  ## remove what was installed and cached; runs/ stays
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache *.egg-info

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv

$(INSTALLED): pyproject.toml constraints.txt | $(filter .uv/bin/uv,$(UV))
	$(INSTALL) -e ".[export]"
	touch $@

$(EVERYTHING): pyproject.toml constraints.txt | $(filter .uv/bin/uv,$(UV))
	$(INSTALL) -e ".[export,tensorflow,timm,medical]" --group dev
	touch $@ $(INSTALLED)
