# The commands that README, CONTRIBUTING and CI name. All of them work in a fresh clone with Python 3.11 or newer and its venv module.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test lint bench manifests clean

serve: $(VENV)/serve.done
	$(BIN)/mirror serve $(ARGS)

test: $(VENV)/dev.done
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadgroup $(ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/dev.done
	$(BIN)/python -m benchmarks $(ARGS)

# The chart, rendered for those who have no Helm.
HELM_TEMPLATE := helm template mirror deploy/chart --namespace mirror --kube-version 1.31.0
manifests:
	$(HELM_TEMPLATE) > deploy/kubernetes/mirror.yaml
	$(HELM_TEMPLATE) --set nodes.enabled=true --show-only templates/nodes.yaml > deploy/kubernetes/nodes.yaml

$(VENV)/serve.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/dev.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
