# The commands that README, CONTRIBUTING and CI name. All of them work in a fresh clone with Python 3.11 or newer and its venv module.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve test lint format bench manifests constraints clean

help: ## shows this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

serve: $(VENV)/serve.done ## runs the mirror; ARGS='--listen 0.0.0.0:5000' for flags
	$(BIN)/mirror serve $(ARGS)

test: $(VENV)/dev.done ## runs the tests, in a quarter of an hour on two idle cores; ARGS='tests/cache -k tags' for some of them
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 $(ARGS)

lint: $(VENV)/dev.done ## checks style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/dev.done ## formats the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/dev.done ## measures the mirror beside others; ARGS=--quick for small sizes
	$(BIN)/python -m benchmarks $(ARGS)

# The chart, rendered for those who have no Helm.
HELM_TEMPLATE := helm template mirror deploy/chart --namespace mirror --kube-version 1.31.0
manifests: ## renders the chart into deploy/kubernetes
	$(HELM_TEMPLATE) > deploy/kubernetes/mirror.yaml
	$(HELM_TEMPLATE) --set nodes.enabled=true --show-only templates/nodes.yaml > deploy/kubernetes/nodes.yaml

$(VENV)/serve.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# Compiled once: the tests start more than a thousand commands, also where PYTHONDONTWRITEBYTECODE is set.
$(VENV)/dev.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q mirror
	touch $@

# The versions that are tested: those of an environment that is made anew without them.
constraints: ## writes constraints.txt anew, with the newest versions
	rm -rf build/newest && $(PYTHON) -m venv build/newest
	build/newest/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	build/newest/bin/pip freeze --exclude registry-mirror > constraints.txt

clean: ## removes the environment and all that was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
