# make song: the first song. make test: the suite. make baby: the embedded model anew. All set up .venv first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Small models lose more to threads' waiting than they gain: two processes of one thread, whose sums are the same anywhere.
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

# Settings of `make baby`; smaller numbers try the stages out.
BABY ?= runs/made
PHONEMIZER_STEPS ?= 6500
SHARDS ?= 24
CODEC_SONGS ?= 240
CODEC_STEPS ?= 6000
STEPS ?= 3200
SFT_STEPS ?= 600

.PHONY: venv song test test-all lint baby clean

venv: $(VENV)/.done

$(VENV)/.done: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

song: venv
	$(PY) sample.py --lyrics examples/song.txt

test: venv lint
	$(TEST) -m "not slow"

test-all: venv lint
	$(TEST)

lint: venv
	$(PY) -m ruff check .

# The embedded model from scratch, stage by stage, in $(BABY); see baby/README.md. Continues where it stopped.
baby: $(BABY)/phonemizer.pt
	$(PY) -m baby.songs --out $(BABY)/data --assets $(BABY) --shards $(SHARDS)
	$(PY) -m baby.codec --out $(BABY) --work $(BABY)/codec --songs $(CODEC_SONGS) --steps $(CODEC_STEPS)
	$(PY) train.py --config baby-pretrain --data.shards '$(BABY)/data/songs-*.tar' --assets $(BABY) \
	    --out $(BABY)/crops --steps $(STEPS)
	$(PY) train.py --config baby-sft --data.shards '$(BABY)/data/songs-*.tar' --assets $(BABY) \
	    --init-from $(BABY)/crops/last --out $(BABY)/run --steps $(SFT_STEPS)
	$(PY) -m baby.pack $(BABY)/run $(BABY)/model
	$(PY) sample.py --model $(BABY)/model --out $(BABY)/song.wav

$(BABY)/phonemizer.pt: | venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r baby/requirements.txt
	$(PY) -m baby.phonemizer --out $@ --steps $(PHONEMIZER_STEPS)

clean:
	rm -rf $(VENV)
