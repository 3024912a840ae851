# make demo | test | test-system | check | soak | audit | fuzz; each first makes .venv when it is missing or older than setup.py or constraints.txt.
PYTHON ?= python3.11
DALI ?= cuda130
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed-$(DALI)
ROOMS = kernels loaders train slurm app

FUZZ ?= 100000
SOAK ?= 20
# munge, Slurm and a browser, from Debian.
SYSTEM = munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins chromium

.PHONY: demo test test-system check soak audit fuzz install
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/anyecg demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-system: $(INSTALLED)
	@[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "make test-system needs root and apt-get: it installs $(SYSTEM); make test does without and skips what is missing"; exit 2; }
	dpkg -s $(SYSTEM) >/dev/null 2>&1 || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(SYSTEM); }
	ANYECG_SYSTEM=1 $(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .types/anyecg
	for room in $(ROOMS); do ln -sfn ../../$$room .types/anyecg/$$room; done
	$(BIN)/mypy $(ROOMS:%=-p anyecg.%)

soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak_chains --each $(SOAK)

audit: $(INSTALLED)
	$(BIN)/python benchmarks/audit.py

fuzz: $(INSTALLED)
	$(BIN)/python -m benchmarks.fuzz_configs --files $(FUZZ)
	$(BIN)/python -m benchmarks.fuzz_headers --files $(FUZZ)
	$(BIN)/python -m benchmarks.fuzz_formats --files $(FUZZ)
	$(BIN)/python -m benchmarks.fuzz_shards --files $(FUZZ)

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; install it with its venv module, or say make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(DALI),dev]'
	touch $@
