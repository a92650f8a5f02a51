"""train_dpo.py: the published loss in value and gradient, pairs good and bad, a run that learns."""

import dataclasses
import json
import zlib
from pathlib import Path

import golden as names
import pytest
import torch
from safetensors.torch import load_file, save_file

import config
import train_dpo
from config import AVERAGED, RECIPES, WEIGHTS, DataSettings, DPOConfig, UserError
from model import DiT
from phonemes import SymbolTable
from support import checkpoint
from support.processes import Processes
from train_dpo import Pairs, preference, work


@pytest.mark.parametrize("sft", ["none", "win", "gt"])
def test_golden_preference_loss(golden, sft):
    """A sign, a factor of two, the reference's gradient, or another noise for the loser."""
    want, inputs = golden("e_dpo.json"), golden("e_dpo_inputs.safetensors")
    meta = golden("tiny_meta.json")
    shapes = {key: entry["shape"] for key, entry in meta["weight_checks"].items()}
    weights = names.rule_weights(shapes)
    moved = {key: w + want["policy_noise_scale"] * torch.randn(
        w.shape, generator=torch.Generator().manual_seed(zlib.crc32((key + "#policy").encode())))
        for key, w in weights.items()}
    reference, policy = (names.make_model(meta["config"], w) for w in (weights, moved))
    case = want[f"sft_{sft}"]
    made = names.dpo(policy, reference.requires_grad_(False), inputs, want["beta"], sft)
    assert made["loss"].item() == pytest.approx(case["dpo_loss"], abs=2e-3)
    assert made["total"].item() == pytest.approx(case["total"], abs=2e-3)
    assert made["inside"].tolist() == pytest.approx(case["inside"], abs=5e-3)
    assert made["accuracy"].item() == case["implicit_acc"]
    made["total"].backward()
    for name, parameter in policy.named_parameters():
        norm = case["grad_norm"][f"transformer.{name}"]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=5e-4, abs=1e-6), name
    total = torch.stack([p.grad.norm() for p in policy.parameters()]).norm().item()
    assert total == pytest.approx(case["total_grad_norm"], rel=5e-4)


def test_preference_by_hand():
    """log 2 where nothing is preferred; small where the winner has gained on the loser."""
    zero = torch.zeros(2)
    loss, inside = preference((zero, zero), (zero, zero), 2000)
    assert loss.tolist() == pytest.approx([0.6931472] * 2) and inside.eq(0).all()
    one = torch.ones(1)
    loss, inside = preference((one, one + 0.01), (one, one), 2000)
    assert inside.item() == pytest.approx(10, rel=1e-3) and loss.item() < 1e-4


@pytest.fixture
def cfg(tmp_path, tiny_preset, tiny_folder, monkeypatch):
    """Four pairs of unlike lengths: winners are what losers are not."""
    monkeypatch.setitem(config.PRESETS, "tiny", tiny_preset)
    rng, entries = torch.Generator().manual_seed(0), []
    for i in range(4):
        song = torch.randn(1, tiny_preset.model.mel_dim, generator=rng).expand(30 + 9 * i, -1)
        for name, value in (("win", song), ("lose", -song), ("gt", torch.cat([song.T, 0 * song.T]))):
            torch.save(value.clone(), tmp_path / f"{name}{i}.pt")
        torch.save(torch.eye(2, 16)[i % 2].clone(), tmp_path / f"style{i}.pt")
        words = {"word": [{"start": 0.1, "end": 0.4, "phoneme": "a"}]}
        (tmp_path / f"{i}.json").write_text(json.dumps(words))
        entries.append({"win_latent": f"win{i}.pt", "loss_latent": f"lose{i}.pt", "gt_latent": f"gt{i}.pt",
                        "transcription": f"{i}.json", "style": f"style{i}.pt"})
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file({f"transformer.{k}": v for k, v in DiT(tiny_preset.model).state_dict().items()},
                  tmp_path / "start.safetensors")
    return DPOConfig(preset="tiny", assets=tiny_folder, data=DataSettings(workers=0), steps=30,
                     pairs=(str(tmp_path / "pairs.json"),), batch=2, out=tmp_path / "run", lr=1e-3,
                     init_from=tmp_path / "start.safetensors", warmup=1, decay=0.0, bf16=False,
                     beta=20.0, ema=0.0, log_every=10, save_every=100, listen=False, tensorboard=False,
                     device="cpu")


def train(cfg: DPOConfig) -> list[dict]:
    work(cfg, Processes())
    return [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("sft", ["none", "win", "gt"])
def test_it_learns_what_is_preferred(cfg, sft):
    """A frozen policy, a reference that moves along, or a loser that is preferred."""
    rows = train(dataclasses.replace(cfg, sft=sft))
    assert rows[0].keys() >= {"loss", "dpo_loss", "policy_loss", "reference_loss", "accuracy", "inside"}
    assert rows[-1]["accuracy"] == 1 and rows[-1]["dpo_loss"] < 0.5 * rows[0]["dpo_loss"]
    assert rows[-1]["inside"] > rows[0]["inside"] > 0
    before, after = load_file(cfg.init_from), load_file(cfg.out / "last" / WEIGHTS)
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in after)


def test_it_begins_where_the_reference_is(cfg):
    """Another noise for the reference: the argument would not be zero before the first step."""
    row, = train(dataclasses.replace(cfg, steps=1, log_every=1))
    assert row["dpo_loss"] == pytest.approx(0.6931472, abs=1e-5) and row["inside"] == 0
    assert row["policy_loss"] == row["reference_loss"]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on(cfg, tmp_path, workers):
    """The reference of a run that goes on is its first one, not its checkpoint; pairs in another order."""
    parts = dataclasses.replace(cfg, data=DataSettings(workers=workers))
    train(dataclasses.replace(parts, steps=2))
    train(dataclasses.replace(parts, steps=4))
    whole = dataclasses.replace(cfg, out=tmp_path / "whole", steps=4)
    train(whole)
    one, two = (load_file(c.out / "last" / WEIGHTS) for c in (cfg, whole))
    assert all(torch.equal(one[k], two[k]) for k in two)


def test_reference_losses_worked_out_before(cfg, tmp_path, monkeypatch):
    """Other draws or another batch than the run's; a reference that is trained, or worked out too often."""
    cfg = dataclasses.replace(cfg, validation=cfg.pairs, validation_songs=3, accumulate=2)
    before = dataclasses.replace(cfg, reference="precomputed")
    rows = train(dataclasses.replace(cfg, steps=4, log_every=1))
    counted, frozen = [], train_dpo.frozen_losses
    monkeypatch.setattr(train_dpo, "frozen_losses", lambda *args: counted.append(args) or frozen(*args))
    half = dataclasses.replace(before, out=tmp_path / "half", steps=2, log_every=1)
    train(half)
    assert len(counted) == 2 + 2 * 2                         # held-out batches, and those of two steps
    same = train(dataclasses.replace(half, steps=4))
    assert len(counted) == 2 + 4 * 2
    rows, same = ([{k: row[k] for k in ("loss", "inside", "reference_loss", "update_norm")} for row in some
                   if "loss" in row] for some in (rows, same))
    assert rows == same and len(rows) == 4
    one, two = (load_file(c.out / "last" / WEIGHTS) for c in (cfg, half))
    assert all(torch.equal(one[k], two[k]) for k in two)


def test_reference_losses_of_other_files_are_not_taken(cfg, tmp_path, monkeypatch):
    """A run that goes on with losses of songs that were replaced, or with a file that was cut short."""
    counted, frozen = [], train_dpo.frozen_losses
    cfg = dataclasses.replace(cfg, reference="precomputed", batch=4)
    monkeypatch.setattr(train_dpo, "frozen_losses", lambda *args: counted.append(args) or frozen(*args))
    train(dataclasses.replace(cfg, steps=1))
    (tmp_path / "run" / "reference-rank0.pt").write_bytes(b"cut")
    train(dataclasses.replace(cfg, steps=3))
    assert len(counted) == 1 + 2
    torch.save(torch.load(tmp_path / "win0.pt") + 1, tmp_path / "win0.pt")
    rows = train(dataclasses.replace(cfg, steps=4, log_every=1))
    assert len(counted) == 1 + 2 + 1
    fresh = train(dataclasses.replace(cfg, steps=1, log_every=1, out=tmp_path / "fresh"))
    assert fresh[0]["inside"] == 0 and rows[-1]["step"] == 4


def test_weights_that_changed_under_a_run(cfg):
    """A reference that is another one after a restart: --init-from may lead to a run that goes on."""
    train(dataclasses.replace(cfg, steps=1))
    save_file({k: v + 1 for k, v in load_file(cfg.init_from).items()}, cfg.init_from)
    with pytest.raises(UserError, match="began from other weights than --init-from .* has now; use another"):
        train(dataclasses.replace(cfg, steps=2))


def test_a_checkpoint_of_train(cfg):
    """Told as a broken checkpoint."""
    train(dataclasses.replace(cfg, steps=1))
    path = cfg.out / "last" / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["beta"]
    path.write_text(json.dumps(state, indent=1))
    sizes = json.loads((path.parent / checkpoint.CONTENTS).read_text())
    (path.parent / checkpoint.CONTENTS).write_text(json.dumps(sizes | {path.name: path.stat().st_size}))
    with pytest.raises(UserError, match="was made with --beta None, not 20.0"):
        train(dataclasses.replace(cfg, steps=2))


def test_the_norm_of_an_update(cfg):
    """A norm of gradients, or of weights, under that name."""
    row, = train(dataclasses.replace(cfg, steps=1, log_every=1))
    before, after = load_file(cfg.init_from), load_file(cfg.out / "last" / WEIGHTS)
    moved = torch.cat([(after[k] - before[k]).flatten() for k in after]).norm().item()
    assert row["update_norm"] == pytest.approx(moved, rel=1e-3) and moved > 0


def test_a_folder_starts_it(cfg, tmp_path):
    """Another model's losses than of the one that sang: a checkpoint is sung with its averaged weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"those that were not averaged")
    cfg.init_from.rename(folder / AVERAGED)
    row, = train(dataclasses.replace(cfg, init_from=folder, steps=1, log_every=1))
    assert row["inside"] == 0


def test_another_beta_is_another_run(cfg):
    train(dataclasses.replace(cfg, steps=1))
    with pytest.raises(UserError, match="was made with --beta 20.0, not 30.0"):
        train(dataclasses.replace(cfg, steps=2, beta=30.0))


def test_posteriors_and_held_out_pairs(cfg, tmp_path):
    """Posteriors taken for latents; validation pairs that are not read."""
    entries = json.loads((tmp_path / "pairs.json").read_text())
    for entry in entries:
        for key in ("win_latent", "loss_latent"):
            x = torch.load(tmp_path / entry[key]).T
            torch.save(torch.cat([x, torch.full_like(x, 0.1)]), tmp_path / entry[key])
    rows = train(dataclasses.replace(cfg, vae_sampled=True, validation=cfg.pairs, steps=2, log_every=1))
    assert [row["step"] for row in rows] == [1, 2, 2] and rows[-1]["validation_loss"] > 0


@pytest.mark.parametrize("change, fragment", [
    ({"win_latent": "no.pt"}, "pair 2: win_latent no.pt: no such file"),
    ({"style": None}, "pair 2: style is None; expected a path"),
    ({"loss_latent": "lose3.pt"}, "pair 2: lengths win_latent 39, loss_latent 57 frames; expected equal"),
    ({"win_latent": "gt1.pt"}, "pair 2: gt1.pt: (54, 39); expected (frames, 27)"),
    ({"style": "nan.pt"}, "pair 2: style nan.pt: has NaN"),
    ({"style": "none.pt"}, "pair 2: style (0, 16); expected (16,) or (n, 16)"),
    ({"transcription": "pairs.json"}, "pair 2: "),
    ({"style": "1.json"}, "pair 2: ")])
def test_bad_pairs(cfg, tmp_path, change, fragment):
    """The original fails amid a run, or trains on a style that is none."""
    entries = json.loads((tmp_path / "pairs.json").read_text())
    entries[1] |= change
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    torch.save(torch.full((2, 16), torch.nan), tmp_path / "nan.pt")
    torch.save(torch.zeros(0, 16), tmp_path / "none.pt")
    for workers in (0, 1):                                   # whose errors come with a traceback in them
        with pytest.raises(UserError) as caught:
            train(dataclasses.replace(cfg, data=DataSettings(workers=workers)))
        assert fragment in str(caught.value) and str(tmp_path / "pairs.json") in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path)) and str(caught.value).isprintable()


@pytest.mark.parametrize("change, fragment", [
    ({"sft": "all"}, "--sft all: expected one of none, win, gt"),
    ({"init_from": None}, "--init-from: expected"),
    ({"beta": 0.0}, "--beta 0.0"), ({"reference": "half"}, "--reference half: expected one of float32"),
    ({"pairs": ()}, "--pairs: expected a JSON file"), ({"pairs": ("[]",)}, "has no pairs; songs.pairs"),
    ({"pairs": ("no.json",)}, "no.json: No such file")])
def test_mistakes(cfg, change, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[]").write_text("[]")
    with pytest.raises(UserError, match=".") as caught:
        train(dataclasses.replace(cfg, **change))
    assert fragment in str(caught.value)


def test_one_of_several_styles_is_drawn(cfg, tmp_path):
    """The first style of each pair, or another one each time that the same seed asks."""
    styles = torch.eye(3, 16)
    torch.save(styles, tmp_path / "style0.pt")
    pairs = Pairs(cfg, config.PRESETS["tiny"], SymbolTable(["a"]))
    drawn = [pairs[0, seed]["style"].argmax().item() for seed in range(60)]
    assert drawn == [pairs[0, seed]["style"].argmax().item() for seed in range(60)]
    assert all(drawn.count(number) > 8 for number in range(3))
    one = dataclasses.replace(cfg, data=DataSettings(style_index=2))
    assert Pairs(one, config.PRESETS["tiny"], pairs.table)[0, 5]["style"].equal(styles[2])
    four = dataclasses.replace(cfg, data=DataSettings(style_index=3))
    with pytest.raises(UserError, match="pair 1: IndexError: "):
        Pairs(four, config.PRESETS["tiny"], pairs.table)[0, 5]


def test_crops_from_the_start(cfg, monkeypatch):
    """--data.from-start without an effect."""
    preset = config.PRESETS["tiny"]
    preset = dataclasses.replace(preset, model=dataclasses.replace(preset.model, max_frames=10))
    anywhere = Pairs(cfg, preset, SymbolTable(["a"]))
    first = Pairs(dataclasses.replace(cfg, data=DataSettings(from_start=True)), preset, anywhere.table)
    assert {first[3, seed]["start_time"] for seed in range(9)} == {0}
    assert len({anywhere[3, seed]["start_time"] for seed in range(9)}) > 3


@pytest.mark.parametrize("value", [
    {"shards": ("a.tar",)}, {"pipe": True}, {"ids": Path("a")}, {"min_duration": 1.0}, {"replacement": True},
    {"resample_duration": 1.0}, {"bucket": 8}, {"window": 2}, {"max_broken": 0.5}])
def test_settings_of_shards_are_refused(cfg, value):
    """A duration rule, or a list of songs, that is silently ignored."""
    name = next(iter(value)).replace("_", "-")
    with pytest.raises(UserError, match=f"--data.{name}: has no use: songs come from --pairs"):
        train(dataclasses.replace(cfg, data=DataSettings(workers=0, **value)))


def test_a_preference_is_no_loss_that_explodes(cfg):
    """--beta, 2000, times a difference: more than --max-loss in a run that is well."""
    rows = train(dataclasses.replace(cfg, steps=3, log_every=1, beta=2e5, lr=3e-3, max_loss=20.0))
    assert max(row["dpo_loss"] for row in rows) > 20 > max(row["policy_loss"] for row in rows)
    with pytest.raises(UserError, match="or above --max-loss 0.1"):
        train(dataclasses.replace(cfg, steps=3, max_loss=0.1, out=cfg.out / "other"))


@pytest.mark.parametrize("reference", ["float32", "precomputed"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sft", ["none", "win", "gt"])
def test_nothing_is_preferred_at_step_0(cfg, reference, bf16, sft, monkeypatch):
    """Times --beta, 2000, a reference that computes in another precision, or batch, has a preference."""
    passes, losses_of = [], train_dpo.losses_of
    monkeypatch.setattr(train_dpo, "losses_of", lambda model, songs, *more: passes.append(len(songs))
                        or losses_of(model, songs, *more))
    row, = train(dataclasses.replace(cfg, steps=1, log_every=1, beta=2000.0, reference=reference, bf16=bf16,
                                     sft=sft, batch=3))
    assert abs(row["inside"]) < 1e-3 and row["dpo_loss"] == pytest.approx(0.6931472, abs=1e-3)
    assert passes == [2, 2, 1][:2 + (sft == "gt")]           # reference, model, truth
    if sft == "none" and not bf16:
        with pytest.raises(UserError, match="--reference bfloat16: expected one of float32, precomputed"):
            dataclasses.replace(cfg, reference="bfloat16")
        with pytest.raises(UserError, match="--bf16 --fsdp: "):
            train(dataclasses.replace(cfg, bf16=True, fsdp=True))


def test_published_recipe():
    dpo = RECIPES["dpo"]
    assert (dpo.beta, dpo.sft_weight, dpo.lr, dpo.accumulate) == (2000, 0.2, 5e-7, 4)
