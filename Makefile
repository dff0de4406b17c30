# Every target sets up what it needs. `make help` lists them.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV ?= .venv
OUTPUT ?= output
PORT ?= 8080
PAGE_PORT ?= 8000
LABEL_PORT ?= 8010
# Images are named IMAGES-data:TAG and so on; a commit's tag never changes its meaning.
IMAGES ?= localhost/thyroid
ifndef TAG
TAG := $(shell git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo dev)$(if $(GPU),-gpu)
endif
export THYROID_IMAGES = $(IMAGES)
export THYROID_TAG = $(TAG)
ifneq ($(wildcard .containers/containers.conf),)
export CONTAINERS_CONF = $(CURDIR)/.containers/containers.conf
endif

BIN := $(VENV)/bin
READY := $(VENV)/ready
READY_DEV := $(VENV)/ready-dev
# The parameters of the pipelines, as their functions declare them; every other list of them comes from these.
declared = $(shell sed -n '/    def thyroid_/,/-> None/s/^        \([a-z_]*\): .*/\1/p' pipelines/$(1).py)
DEPLOYMENT := $(shell sed -n 's/^    \([a-z_]*\): .* = .*/\1/p' thyroid/deploy/options.py)
LOCAL := output preset backbones engine config
PARAMETERS := $(LOCAL) $(filter-out run $(DEPLOYMENT),$(call declared,training))
SWEEP_PARAMETERS := $(LOCAL) $(call declared,sweep)
WATCH_PARAMETERS := $(filter-out registry,$(call declared,watch))
VALIDATE_PARAMETERS := $(filter-out registry,$(call declared,validation)) share key
# Options of compile and submit that differ from cluster to cluster.
PLACEMENT := shards gpus queue priority_class deadline keep s3_secret cache
# CLAIM= is not the same as none: the steps then mount no volume.
PLACING = $(call options,$(PLACEMENT)) $(if $(filter command,$(origin CLAIM)),--claim "$(CLAIM)")
upper = $(shell echo '$(1)' | tr a-z A-Z)
# A variable that is given becomes the option of its name: SERVING_DOMAIN=normal is --serving-domain "normal".
option = $(if $($(1)),--$(shell echo '$(1)' | tr A-Z_ a-z-) "$($(1))")
options = $(strip $(foreach name,$(call upper,$(1)),$(call option,$(name))))

# What may be given; make itself would swallow any other name, and `make run BACKBONE=VGG16` train all five.
KNOWN := PYTHON VENV PORT PAGE_PORT SHADOW LABEL_PORT LABELLED ENDPOINT READERS SECOND SUSPECTS FILES KEYS \
	$(call upper,$(VALIDATE_PARAMETERS) $(WATCH_PARAMETERS)) \
	IMAGES TAG GPU SLOW OVERLAY CLAIM $(call upper,$(PLACEMENT)) HOST SERVICE_ACCOUNT NAMESPACE TOKEN_FILE PIPELINE SET RUNS \
	BASE_IMAGE CONTAINER_ENGINE KUBECONFIG $(call upper,$(PARAMETERS) $(SWEEP_PARAMETERS))
UNKNOWN := $(filter-out $(KNOWN),$(foreach one,$(.VARIABLES),$(if $(filter command,$(origin $(one))),$(one))))
ifneq ($(UNKNOWN),)
NEAREST := $(shell "$(PYTHON)" -c 'import difflib, sys; name, *known = sys.argv[1:]; print(*difflib.get_close_matches(name.upper(), known, 1))' \
	'$(firstword $(UNKNOWN))' $(KNOWN))
$(error $(firstword $(UNKNOWN)): make has no such variable here$(if $(NEAREST),; did you mean $(NEAREST)?,.) `make help` lists them)
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run sweep serve label validate pool watch test test-slow test-containers test-browser test-cluster lint lint-manifests format images push manifests workbench compile submit bench soak results lock docs clean

help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make run takes these variables; the table in README.md explains them:"
	@echo "    $(sort $(call upper,$(PARAMETERS)))" | fold -s -w 100 | sed '2,$$s/^/    /'
	@echo "  make sweep also takes HEAD_TRIALS= IMAGE_TRIALS="
	@echo "  make images|compile|submit PIPELINE=training|sweep|validate|watch IMAGES=registry/prefix TAG=tag GPU=1; SHARDS=8 GPUS=1 QUEUE= PRIORITY_CLASS="
	@echo "    DEADLINE=hours KEEP=days CLAIM= (no volume) S3_SECRET= CACHE=100Gi; submit: HOST=url SET='scans=... registry=...' NAMESPACE= TOKEN_FILE="

# The longest tests first, a file with one worker: see tests/conftest.py. On two cores three workers, since each waits for a
# fifth of its time, but two for the slow tests, which take gigabytes.
PYTEST = "$(BIN)/python" -m pytest
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

INSTALL = "$(BIN)/python" images/install.py

setup: $(READY) ## Create the environment of run, sweep, serve, compile and submit from requirements.lock
setup-dev: $(READY_DEV) ## Add what tests, linters and benchmarks need, from requirements-dev.lock

$(READY): requirements.lock images/build.lock images/install.py pyproject.toml
	@"$(PYTHON)" -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else "error: Python 3.11 to 3.13 is needed (TensorFlow has no wheels for others); this is " + sys.version.split()[0] + ". Name one with: make PYTHON=/path/to/python3.11 ...")'
	@echo "set-up: TensorFlow, Keras, OpenVINO, Kubeflow's and KServe's libraries into $(VENV)/ (.5 GB to download, 2.7 GB on disk)"
	@"$(PYTHON)" -m venv "$(VENV)"
	@$(INSTALL) requirements.lock --compile
	@"$(BIN)/python" -m uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch "$@"

$(READY_DEV): requirements-dev.lock $(READY)
	@echo "set-up: test, lint and browser tools into $(VENV)/"
	@$(INSTALL) requirements-dev.lock --compile
	@touch "$@"

run: $(READY) ## Scans to registered model and report on this machine (no arguments: synthetic sample scans; CONFIG=run.yaml)
	@"$(BIN)/python" -m pipelines run $(call options,$(PARAMETERS))

sweep: $(READY) ## Search one backbone's settings on this machine (BACKBONES=VGG16 by default)
	@"$(BIN)/python" -m pipelines sweep $(call options,$(SWEEP_PARAMETERS))

serve: $(READY) ## Serve the registered model of OUTPUT over KServe's HTTP protocol, and the page (PORT=8080 PAGE_PORT=8000; LOG=dir SITE: log every decision; SHADOW=1: the candidate answers behind the champion)
	@"$(BIN)/python" -m thyroid.serve --registry "$(or $(REGISTRY),$(OUTPUT)/registry)" --port $(PORT) --page-port $(PAGE_PORT) \
		$(call options,log site) $(if $(filter-out 0 false no,$(SHADOW)),--shadow)

# Who proposes boxes in the bench: an endpoint, or else the champion of a registry.
PROPOSER := $(or $(REGISTRY),$(wildcard $(OUTPUT)/registry))
PROPOSING = $(if $(ENDPOINT),--endpoint "$(ENDPOINT)",$(if $(PROPOSER),--registry "$(PROPOSER)"))

label: $(READY) ## The labelling bench: boxes in SCANS go to LABELLED (LABELS READERS SECOND=.2 SUSPECTS; ENDPOINT or REGISTRY proposes boxes)
	@test -n "$(SCANS)" && test -n "$(LABELLED)" || { echo "error: make label needs SCANS=dir and LABELLED=dir" >&2; exit 2; }
	@"$(BIN)/python" -m thyroid.label --scans "$(SCANS)" --labelled "$(LABELLED)" --port $(LABEL_PORT) $(strip $(PROPOSING) \
		$(if $(READERS),--readers "$(READERS)") $(if $(SECOND),--second $(SECOND)) $(if $(SUSPECTS),--suspects "$(SUSPECTS)") \
		$(call options,labels classes seed))

# A folder that is named together with the registry is for the validation alone; else OUTPUT is that of a run.
VALIDATION = $(OUTPUT)$(if $(and $(REGISTRY),$(filter command,$(origin OUTPUT))),,/validation)
validate: $(READY) ## A registered model at another hospital: MODEL=champion SCANS SITE (ROIS LABELS; REGISTRY or OUTPUT has the model; SHARE KEY)
	@test -n "$(SCANS)" && test -n "$(SITE)" || { echo "error: make validate needs SCANS=dir and SITE=\"name of the hospital\"" >&2; exit 2; }
	@"$(BIN)/python" -m thyroid.validate --registry "$(or $(REGISTRY),$(OUTPUT)/registry)" --output "$(VALIDATION)" \
		$(call options,$(filter-out recalibrate,$(VALIDATE_PARAMETERS))) $(if $(filter-out 0 false no,$(RECALIBRATE)),--recalibrate)

# statsmodels, which nothing else needs, is installed when it is first asked for.
$(VENV)/ready-pool: images/validate.lock $(READY)
	@$(INSTALL) images/validate.lock --compile
	@touch "$@"

pool: $(VENV)/ready-pool ## What several hospitals shared about one model: FILES='a.json b.json' KEYS=dir of their public keys
	@test -n "$(FILES)" && test -n "$(KEYS)" || { echo "error: make pool needs FILES='a.json b.json' and KEYS=dir" >&2; exit 2; }
	@"$(BIN)/python" -m thyroid.pool --keys "$(KEYS)" --output "$(OUTPUT)/pool" $(FILES)

watch: $(READY) ## A released model since its release: LOG=dir of `make serve LOG=` (ARCHIVE SCANS ROIS OUTCOMES SITE; REGISTRY or OUTPUT has the model)
	@"$(BIN)/python" -m thyroid.watch --registry "$(or $(REGISTRY),$(OUTPUT)/registry)" --output "$(OUTPUT)/watch" \
		$(call options,$(WATCH_PARAMETERS))

test: WORKERS = $(if $(SLOW),2,3)
test: $(READY_DEV) ## Lint, type check and all fast tests (SLOW=1: and the slow ones, for which the fast ones' models do)
	$(LINT)
	$(if $(SLOW),@$(MAKE) --no-print-directory checkov)
	@# mypy takes one core for half a minute, while the tests take the other
	"$(BIN)/mypy" & types=$$!; $(PYTEST) -m "$(if $(SLOW),,not slow and )not containers and not browser and not cluster" $(SIDE_BY_SIDE); \
		tests=$$?; wait $$types && exit $$tests

test-slow: WORKERS = 2
test-slow: $(READY_DEV) checkov ## The slow tests: the README's commands and the run on real scans
	$(PYTEST) -m slow $(SIDE_BY_SIDE)

test-containers: $(READY_DEV) images ## The whole pipeline and the endpoint in their real images
	@# looked for here: `images` has only just written it on a machine that needs it
	@[ ! -f .containers/containers.conf ] || export CONTAINERS_CONF="$(CURDIR)/.containers/containers.conf"; \
		$(PYTEST) -m containers -s

test-browser: $(READY_DEV) ## The page in Chromium: every step in both languages and sizes; pictures go to output-browser/
	@tests/browser/install.sh
	@# a browser that other work keeps waiting may take a tap for a long press: once more, and the summary says so
	$(PYTEST) -m browser --reruns 1

test-cluster: $(READY_DEV) ## Deployments and manifests on a real Kubernetes API server: that of KUBECONFIG, or one that is built (.08 GB in ~/.cache)
	$(if $(KUBECONFIG),,@tests/cluster/install.sh >/dev/null)
	@# a worker has a server of its own; most of the time is spent waiting for it
	$(PYTEST) -m cluster -n 2 --dist worksteal --reruns 1

LINT = "$(BIN)/ruff" check . && "$(BIN)/ruff" format --check . && "$(BIN)/codespell" && "$(BIN)/python" docs/reference.py --check

lint: $(READY_DEV) ## Lint, spelling and type check
	$(LINT) && "$(BIN)/mypy"

format: $(READY_DEV) ## Format the code
	"$(BIN)/ruff" check --fix . && "$(BIN)/ruff" format .

.PHONY: checkov
checkov: $(READY) manifests/checkov.lock
	@test -x "$(VENV)/checkov/bin/checkov" || { "$(PYTHON)" -m venv --without-pip "$(VENV)/checkov" \
		&& $(INSTALL) manifests/checkov.lock --into "$(VENV)/checkov/bin/python" --compile; }

lint-manifests: checkov ## Security linter over the rendered manifests
	$(PYTEST) -q tests/manifests -k linter

images: ## Build the image of every dependency set with docker, podman or buildah (GPU=1: the GPU variants; BASE_IMAGE=...)
	@GPU="$(GPU)" images/build.sh "$(IMAGES)" "$(TAG)"

push: ## Push the images that `make images` built (IMAGES=registry/prefix)
	@engine=$$(images/engine.sh) && for set in data train ops serve web label validate watch listen $(if $(GPU),serve-gpu); do \
		"$$engine" push "$(IMAGES)-$$set:$(TAG)" || exit 1; done

manifests: ## Render what a namespace needs, with these images: make -s manifests OVERLAY=cpu|gpu|gateway|ingress|multi-user|bucket|label[-gateway|-ingress]|listen[-argo|-knative] | kubectl apply -f -
	@kubectl kustomize "manifests/overlays/$(or $(OVERLAY),cpu)" | sed -E 's#localhost/thyroid-(ops|serve|serve-gpu|web|label|listen):dev$$#$(IMAGES)-\1:$(TAG)#'

workbench: ## Render a pod with the volume (OVERLAY=bucket: without) and the ops image, to bring scans in: make -s workbench | kubectl apply -f -
	@sed 's#localhost/thyroid-ops:dev$$#$(IMAGES)-ops:$(TAG)#$(if $(filter bucket,$(OVERLAY)),; /{name: data/d)' manifests/workbench/pod.yaml

compile: $(READY) ## Write the Kubeflow pipelines: thyroid.yaml (as objects for Git, too: thyroid-version.yaml), thyroid-sweep.yaml, thyroid-validate.yaml and thyroid-watch.yaml
	@"$(BIN)/python" -m pipelines compile --output thyroid.yaml $(PLACING)

submit: $(READY) ## Start a run on Kubeflow and watch it (HOST=url SET='scans=/data/scans registry=/data/registry')
	@test -n "$(HOST)" || { echo "error: make submit needs HOST=address of Kubeflow Pipelines" >&2; exit 2; }
	@"$(BIN)/python" -m pipelines submit --host "$(HOST)" --service-account "$(or $(SERVICE_ACCOUNT),thyroid-pipeline)" \
		$(if $(NAMESPACE),--namespace "$(NAMESPACE)") $(if $(TOKEN_FILE),--token-file "$(TOKEN_FILE)") $(PLACING) \
		$(if $(PIPELINE),--pipeline $(PIPELINE)) $(if $(BACKBONES),--backbones "$(BACKBONES)") $(foreach one,$(SET),--set "$(one)")

bench: $(READY_DEV) ## Ratios against named peers
	@for b in input training sweep evaluation serving scale incremental locate margins label suspects validate novelty watch; do "$(BIN)/python" bench/$$b.py || exit 1; done
	@tests/browser/install.sh && "$(BIN)/python" bench/web.py

soak: $(READY_DEV) ## The endpoint of OUTPUT at 80 % load for ten minutes (no error, flat memory), good requests beside attacks, and floods, flips and kills in bulk
	@scan="$$(find "$(OUTPUT)/sample/scans" -name '*.jpg' | sort | head -n 1)"; \
		for b in soak attacks; do "$(BIN)/python" bench/$$b.py --registry "$(OUTPUT)/registry" --scan "$$scan" || exit 1; done
	SOAK=16 $(PYTEST) -m slow tests/serve/test_attacks.py tests/web/test_web_attacks.py tests/registry/test_registry.py tests/ingest/test_incremental.py \
		tests/registry/test_erasure.py tests/train/test_checkpoints.py

results: $(READY) ## Recipes and backbones side by side on SCANS, ROIS and WEIGHTS: writes docs/results.md (an hour or more); RUNS='dir dir': what these runs found
	@test -n "$(SCANS)$(RUNS)" || { echo "error: make results needs SCANS=dir and ROIS=rois.csv, or RUNS=outputs of make sweep and make run" >&2; exit 2; }
ifneq ($(RUNS),)
	@"$(BIN)/python" bench/results.py --runs $(RUNS)
else
	@"$(BIN)/python" -m thyroid.ingest --scans "$(SCANS)" $(if $(ROIS),--rois "$(ROIS)") --output "$(OUTPUT)-results/ingested"
	@"$(BIN)/python" -m thyroid.crop --data "$(OUTPUT)-results/ingested" --output "$(OUTPUT)-results/data"
	@"$(BIN)/python" bench/results.py --data "$(OUTPUT)-results/data" --work "$(OUTPUT)-results/work" $(if $(WEIGHTS),--weights "$(WEIGHTS)")
endif

lock: $(READY) ## Resolve requirements-dev.lock, requirements.lock and the images' locks anew from pyproject.toml (no URLs in them)
	UPGRADE=1 UV="$(BIN)/uv" images/lock.sh

docs: $(READY) ## Write the table of parameters in README.md from the pipeline, and docs/reference from the records
	@"$(BIN)/python" -m pipelines.parameters README.md
	@"$(BIN)/python" docs/reference.py

clean: ## Remove the environment and OUTPUT
	rm -rf "$(VENV)" "$(OUTPUT)" "$(OUTPUT)-results" output-browser
