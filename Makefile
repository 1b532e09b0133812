# Each target builds .venv first, once; an edited requirements file builds it again.

# The first of these that is new enough; python3 is often an old one next to a newer python3.12.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done || echo python3)
NB ?=
# MANY=1: test-long kills 20 times instead of twice, and more of the like.
MANY ?=
# How often test-long runs each lesson anew; empty, it does not.
REPEAT ?=
# How many test files run at a time.
JOBS ?= 2
# Empty (make test CONSTRAINTS=), the newest versions that requirements.txt allows are installed.
CONSTRAINTS ?= -c constraints.txt
export CONSTRAINTS
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BOOK_READY := $(VENV)/.book-ready
SHIP_READY := $(VENV)/.ship-ready
TEST_READY := $(VENV)/.test-ready

# Everything but a model named in COURSE_MODEL is in the repository, so nothing is asked of the hub.
ifndef COURSE_MODEL
export HF_HUB_OFFLINE = 1
endif
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help run test maintenance test-long ship lab lint book bench bench-gpu real data data-model data-report data-preferences slides workshop publish-as

help:  ## Say what each target does
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

run: $(READY)  ## Execute every lesson and write its page under build/ (NB=01 for one)
	@$(BIN)/python scripts/run_lessons.py $(NB)

# Two files at a time, each on a core of its own; the notebooks first, since they take longest.
test: $(TEST_READY) lint  ## Run every test, the notebooks among them
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest notebooks tests --ignore=notebooks/deeper \
		--ignore=tests/maintenance \
		--nbval-lax --nbval-current-env --every-notebook -n $(JOBS) --dist loadfile \
		--no-loadscope-reorder

maintenance: $(TEST_READY) lint  ## Check what pages, notebooks, records and workflows say of each other
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/maintenance -n $(JOBS)

# By files: the tests of one share what it made first, and no lesson runs twice at a time.
test-long: $(TEST_READY)  ## Run notebooks/deeper, the pages, kills and repetitions (MANY=1: 20 kills of each kind)
	@MANY=$(MANY) REPEAT=$(REPEAT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m long -n $(JOBS) \
		--dist loadfile $(if $(NB),-k lesson_$(NB))
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m pytest -p conftest notebooks/deeper \
		--nbval-lax --nbval-current-env $(if $(NB),-k $(NB)_,--every-notebook) \
		-n $(JOBS) --dist loadfile

ship: $(SHIP_READY)  ## Fetch llama.cpp, its converters and lm-eval, which lesson 12 runs

lab: $(READY)  ## Open JupyterLab on the lessons, on this machine only
	@$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --notebook-dir=notebooks

lint: $(READY)  ## Check the style of the code, that in the notebooks too
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

book: $(BOOK_READY)  ## Build the pages under build/book
	@$(BIN)/python book/build.py

bench: $(READY)  ## Measure the speed of the parts, then compare the methods (half an hour; it goes on when stopped)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py
	@$(BIN)/python -m course_utils compare --output build/comparison

bench-gpu: $(READY)  ## Measure memory and speed on this machine's GPU; results in build/gpu
	-@$(BIN)/python benchmarks/gpu_memory.py headline
	@$(BIN)/python benchmarks/gpu_memory.py compare
	@$(BIN)/python benchmarks/gpu_speed.py

real: $(READY)  ## Fetch SmolLM2-135M-Instruct once; COURSE_MODEL=smollm2 then names it everywhere
	@HF_HUB_OFFLINE=0 $(BIN)/python scripts/real_model.py

data: $(READY)  ## Write the datasets again, byte for byte
	@$(BIN)/python data/build/make_datasets.py

data-model: $(READY)  ## Pretrain both pocket models again (two to two and a half hours on two cores)
	@$(BIN)/python data/build/pretrain.py
	@$(BIN)/python data/build/pretrain.py --model t5

data-preferences: $(READY)  ## Let the tuned pocket model answer new messages, for the pairs of lesson 11a (six minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python data/build/make_preferences.py

data-report: $(READY)  ## Measure the pocket model before and after fine-tuning
	@$(BIN)/python data/build/report.py

slides: $(READY)  ## Write the lessons as slides under build/slides (NB=04 for one); they need no network
	@$(BIN)/python scripts/slides.py $(NB)

workshop: $(READY)  ## Prepare build/workshop for a room without a network (TARGET=windows:3.12 for others, REAL=1 with SmolLM2)
	@$(if $(REAL),HF_HUB_OFFLINE=0 )$(BIN)/python scripts/workshop.py $(addprefix --target ,$(TARGET)) $(if $(REAL),--real)

publish-as:  ## Name another repository or tag everywhere (REPOSITORY=owner/name TAG=v0.2.0)
	@$(PYTHON) scripts/publish_as.py --repository="$(REPOSITORY)" --tag="$(TAG)"

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1). The course needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@echo "Building $(VENV): a few minutes the first time."
	@if command -v uv >/dev/null; then \
		uv venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -r requirements.txt $(CONSTRAINTS) -e .; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt $(CONSTRAINTS) -e .; \
	fi
	@touch $(READY)

# Only the pages need these, so learners do not wait for them.
$(BOOK_READY): $(READY) book/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r book/requirements.txt $(CONSTRAINTS)
	@touch $(BOOK_READY)

# Only lesson 12 runs these; without them it shows what is on record. No compiler is needed.
$(SHIP_READY): $(READY) requirements-ship.txt scripts/llama_converter.py
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ship.txt $(CONSTRAINTS)
	@$(BIN)/python scripts/llama_converter.py
	@touch $(SHIP_READY)

# The pages are among what is tested, and so is what lesson 12 runs.
$(TEST_READY): $(BOOK_READY) $(SHIP_READY) tests/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt $(CONSTRAINTS)
	@touch $(TEST_READY)
