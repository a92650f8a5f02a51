"""Many songs, from manifest to files, with stand-ins for every part of JAM-0.5 in its published layout."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import soundfile
import standin_style
import standin_vae
import torch
from conftest import BABY, ROOT
from safetensors.torch import save_file

import sample
from config import CONFIG, PHONEMIZER, PRESETS, WEIGHTS, CodecConfig, SampleConfig, UserError
from model import DiT
from sample import Model, main
from songs import files
from songs.manifest import Report, read_manifest, song_of
from support.checkpoint import preset_to_json
from support.cli import parse
from vae import Oobleck

RATE = 16000
WIDTH = 16
WORDS = [{"word": "hello", "start": 0.2, "end": 0.7}, {"word": "world", "start": 0.8, "end": 1.4}]


@pytest.fixture(scope="module")
def jam(tmp_path_factory):
    """Flags of a small random JAM: weights, TorchScript decoder, style encoder, phonemizer, vocal style."""
    folder = tmp_path_factory.mktemp("jam")
    codec = CodecConfig("oobleck", sample_rate_hz=RATE, hop=512, wave_channels=2, latent_dim=8, width=4,
                        strides=(2, 4, 8, 8), multiples=(1, 2, 2, 4))
    sizes = dataclasses.replace(PRESETS["jam-0.5"].model, dim=32, depth=2, heads=2, mel_dim=8, text_dim=16,
                                cond_dim=WIDTH, conv_layers=1, max_frames=96)
    preset = dataclasses.replace(PRESETS["jam-0.5"], model=sizes, codec=codec, steps=3)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        (folder / "model").mkdir()
        weights = {f"transformer.{k}": v for k, v in DiT(sizes).state_dict().items()}
        save_file(weights, folder / "model" / WEIGHTS)
        warnings.simplefilter("ignore")
        standin_vae.save_script(standin_vae.Fitting(Oobleck(codec)), folder / "vae_model.pt")
    (folder / "model" / CONFIG).write_text(preset_to_json(preset))
    standin_style.build(folder / "encoder", WIDTH)
    np.save(folder / "vocal.npy", np.eye(1, WIDTH, dtype=np.float32))
    return ["--model", folder / "model", "--vae", folder / "vae_model.pt",
            "--style-encoder", folder / "encoder", "--phonemizer", BABY / PHONEMIZER,
            "--negative-style", folder / "vocal.npy", "--offline", "--page", "false"]


@pytest.fixture
def inputs(tmp_path):
    """A manifest of three songs in the published form, with the files that it names; returns its path."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    entries = []
    for i, name in enumerate(["one", "two, too", "drei"]):
        soundfile.write(folder / f"{name}.mp3", 0.1 * rng.standard_normal((48000, 2)), 48000, format="MP3")
        shifted = [w | {"start": w["start"] + i / 4, "end": w["end"] + i / 4} for w in WORDS]
        (folder / f"{name}.json").write_text(json.dumps({"word": shifted, "segment": []}))
        (folder / f"{name}.txt").write_text("dream pop,\nslow: 120\n")
        entries.append({"id": name, "audio_path": f"inputs/{name}.mp3", "lrc_path": f"inputs/{name}.json",
                        "duration": 2.0 + i / 4, "prompt_path": f"inputs/{name}.txt"})
    path = tmp_path / "input.json"
    path.write_text(json.dumps(entries))
    return path


def change(path, number, **more):
    """Change an entry of a manifest; None takes a key away."""
    entries = json.loads(path.read_text())
    entry = entries[number] | more
    entries[number] = {k: v for k, v in entry.items() if v is not None}
    path.write_text(json.dumps(entries))


def run(jam, inputs, out, *more):
    """sample.py's main on a manifest. Returns: the exit code and what metadata.json says."""
    code = 0
    try:
        main([str(x) for x in [*jam, "--manifest", inputs, "--out-dir", out, "--format", "wav", *more]])
    except SystemExit as end:
        code = end.code
    return code, json.loads((out / "metadata.json").read_text())


def sounds(out):
    """Every file of the output tree that holds sound or latents, by its name."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/*"))
            if p.suffix in (".wav", ".pt", ".mp3")}


def test_outputs(jam, inputs, tmp_path, capsys):
    """The published tree: songs as long as asked, songs as sampled, latents frames-first, what was done."""
    out = tmp_path / "outputs"
    code, metadata = run(jam, inputs, out)
    assert code == 0
    assert sorted(p.name for p in out.iterdir() if p.name != ".lock") == [
        "cfm_latents", "generated", "generated_orig", "generation_config.json", "metadata.json",
        "metadata_process0.jsonl"]
    assert [(m["id"], m["status"], m["seeds"], m["songs"]) for m in metadata] == [
        (name, "made", [0], [f"generated/{name}.wav"]) for name in ("one", "two, too", "drei")]
    for i, name in enumerate(["one", "two, too", "drei"]):
        song, rate = soundfile.read(out / "generated" / f"{name}.wav")
        full, _ = soundfile.read(out / "generated_orig" / f"{name}.wav")
        latents = torch.load(out / "cfm_latents" / f"{name}.pt", weights_only=True)
        assert rate == RATE and song.shape == (round((2 + i / 4) * RATE), 2) and full.shape == (96 * 512, 2)
        assert (song == full[:len(song)]).all() and song.std() > 0.01
        assert latents.shape == (96, 8) and latents.dtype == torch.float32 and latents.isfinite().all()
        account = json.loads((out / "generated" / f"{name}.wav.json").read_text())
        assert account["request"]["seed"] == 0 and len(account["style"]) == WIDTH
        assert set(account["request"]["sha256"]) == {
            "lyrics", "weights", "phonemizer", "codec", "style_encoder"}
    again = parse(SampleConfig, "", ["--config", str(out / "generation_config.json")])
    assert again.steps == 3 and again.guidance_weights == (4.7, 2.6) and again.manifest == inputs
    assert "its weights are taken" in capsys.readouterr().out         # which way the TorchScript file went


def test_a_decoder_of_another_network(jam, inputs, tmp_path, capsys):
    """Its code must not run unasked, and must run when asked: --trust-vae has to reach the decoder."""
    standin_vae.save_script(standin_vae.Foreign(2, 8, 512), tmp_path / "vae.pt")
    change(inputs, 1, lrc_path="inputs/none.json")
    change(inputs, 2, lrc_path="inputs/none.json")
    flags = ["--vae", tmp_path / "vae.pt"]
    with pytest.raises(UserError, match="its own code would be needed, which --trust-vae runs"):
        run(jam, inputs, tmp_path / "out", *flags)
    _, metadata = run(jam, inputs, tmp_path / "out", *flags, "--trust-vae")
    assert metadata[0]["status"] == "made" and "TorchScript is run as it is" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_and_one_broken_song(jam, inputs, tmp_path):
    """Songs that depend on how many processes make them; a broken one that takes the others with it."""
    change(inputs, 0, lrc_path="inputs/none.json")
    change(inputs, 2, seed=5)
    code, metadata = run(jam, inputs, tmp_path / "alone")
    assert code == 1 and [m["status"] for m in metadata] == ["failed", "made", "made"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "sample.py", *jam, "--manifest", inputs, "--out-dir", tmp_path / "both", "--format", "wav"]
    done = subprocess.run([str(x) for x in command], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert 'error: song "one": ' in done.stderr and "inputs/none.json: no such file beside" in done.stderr
    assert "sample.py\", line" not in done.stderr                     # no traceback of ours
    assert json.loads((tmp_path / "both" / "metadata.json").read_text()) == metadata
    parts = [(tmp_path / "both" / f"metadata_process{i}.jsonl").read_text().count("\n") for i in range(2)]
    assert min(parts) >= 1 and sum(parts) == 3
    one, two = sounds(tmp_path / "alone"), sounds(tmp_path / "both")
    assert len(one) == 6 and one == two


def test_a_song_longer_than_the_window(jam, inputs, tmp_path):
    """96 frames a window, always full: a last window that is padded, or a song that is cut to one."""
    change(inputs, 0, duration=9.0)
    code, metadata = run(jam, inputs, tmp_path / "out")
    assert code == 0 and [m["status"] for m in metadata] == ["made"] * 3
    latents = torch.load(tmp_path / "out" / "cfm_latents" / "one.pt", weights_only=True)
    assert latents.shape == (282, 8) and latents.isfinite().all()
    full, _ = soundfile.read(tmp_path / "out" / "generated_orig" / "one.wav")
    song, _ = soundfile.read(tmp_path / "out" / "generated" / "one.wav")
    assert len(full) == 282 * 512 and len(song) == 9 * RATE


def test_finished_songs_are_skipped(jam, inputs, tmp_path, monkeypatch, capsys):
    """A run that was cut short does all again, or keeps songs that were asked for differently."""
    out = tmp_path / "outputs"
    run(jam, inputs, out)
    before, sing = sounds(out), Model.sing
    monkeypatch.setattr(Model, "sing", lambda *args: pytest.fail("sang a finished song"))
    monkeypatch.setattr(sample, "Model", lambda *args: pytest.fail("loaded a network for nothing"))
    code, metadata = run(jam, inputs, out)
    assert code == 0 and [m["status"] for m in metadata] == ["finished"] * 3 and sounds(out) == before
    monkeypatch.undo()
    sung = []
    monkeypatch.setattr(Model, "sing", lambda model, prompt, *rest: sung.append(prompt.song.id)
                        or sing(model, prompt, *rest))
    (out / "cfm_latents" / "one.pt").unlink()
    assert run(jam, inputs, out)[0] == 0 and sung == ["one"] and sounds(out) == before
    (tmp_path / "inputs" / "drei.json").write_text(json.dumps(WORDS))
    change(inputs, 1, seed=7)
    assert run(jam, inputs, out)[0] == 0 and sung == ["one", "two, too", "drei"]
    changed = {name for name, content in sounds(out).items() if before[name] != content}
    assert {name.split("/")[1].split(".")[0] for name in changed} == {"two, too", "drei"}
    assert run(jam, inputs, out, "--page", "true")[0] == 0 and sung[3:] == ["one", "two, too", "drei"]
    assert (out / "generated" / "two, too.html").exists()
    del sung[3:]
    (out / "generated" / "one.wav.json").write_text("{")              # nobody's song, as far as one can tell
    assert run(jam, inputs, out)[0] == 1 and sung[3:] == []
    assert run(jam, inputs, out, "--overwrite", "true")[0] == 0 and sung[3:] == ["one"]
    assert run(jam, inputs, out, "--steps", "2")[0] == 0 and len(sung) == 7


@pytest.mark.slow
def test_what_is_asked_for_differently_is_made_again(jam, inputs, tmp_path, monkeypatch):
    """Other weights of the style encoder or another preset: a stale song; another window of a text: none."""
    out, sung, sing = tmp_path / "out", [], Model.sing
    monkeypatch.setattr(Model, "sing", lambda model, prompt, seed, *rest: (
        sung.append((prompt.song.id, seed)), sing(model, prompt, seed, *rest))[1])
    change(inputs, 0, audio_path=None)                       # its style is a text
    run(jam, inputs, out)
    sung.clear()
    run(jam, inputs, out, "--batch-infer-num", 2)            # the first variants are there
    assert sung == [("one", 1), ("two, too", 1), ("drei", 1)]
    sung.clear()
    run(jam, inputs, out, "--num-style-secs", 10)
    assert sung == [("two, too", 0), ("drei", 0)]
    other = tmp_path / "encoder"
    shutil.copytree(jam[5], other)
    weights = torch.load(other / "MuQ-MuLan-large" / "pytorch_model.bin", weights_only=True)
    weights = {k: v + 1e-3 if v.is_floating_point() else v for k, v in weights.items()}
    torch.save(weights, other / "MuQ-MuLan-large" / "pytorch_model.bin")
    sung.clear()
    run([*jam, "--style-encoder", other], inputs, out)
    assert len(sung) == 3
    model = tmp_path / "model"
    shutil.copytree(jam[1], model)
    config = json.loads((model / CONFIG).read_text())
    (model / CONFIG).write_text(json.dumps(config | {"filler": "average_repeat"}))
    sung.clear()
    run([*jam, "--style-encoder", other, "--model", model], inputs, out)
    assert len(sung) == 3


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_killed_between_two_files(jam, inputs, tmp_path, monkeypatch, after):
    """The original of one seed beside the song of another, told to be finished."""
    out, writes, write = tmp_path / "out", [], files.write_wave
    run(jam, inputs, out)
    before = sounds(out)

    def killed(*args):
        writes.append(args)
        if len(writes) > after:
            raise KeyboardInterrupt
        write(*args)
    monkeypatch.setattr(files, "write_wave", killed)
    with pytest.raises(KeyboardInterrupt):
        run(jam, inputs, out, "--seed", 5)
    monkeypatch.undo()
    assert not (out / "metadata.json").exists() and not list(out.glob("*/.*"))       # nothing half-written
    run(jam, inputs, out)
    assert sounds(out) == before


def test_the_account_of_a_song_remakes_it(jam, inputs, tmp_path):
    """A manifest song's account that names other lyrics, or no style."""
    change(inputs, 1, seed=3)
    run(jam, inputs, tmp_path / "out", "--batch-infer-num", 2)
    song = tmp_path / "out" / "generated" / "two, too-2.wav"
    main(["--config", str(song) + ".json", "--out", str(tmp_path / "again.wav")])
    assert (tmp_path / "again.wav").read_bytes() == song.read_bytes()


@pytest.mark.slow
def test_a_song_that_was_remade_in_place_is_finished(jam, inputs, tmp_path):
    """Sung again by its account, with its own words and style: it is still what the manifest asks for."""
    out = tmp_path / "out"
    run(jam, inputs, out)
    before = sounds(out)
    for name in ("one.wav", "drei.wav"):
        main(["--config", str(out / "generated" / f"{name}.json"), "--overwrite", "true"])
    assert sounds(out) == before
    assert [song["status"] for song in run(jam, inputs, out)[1]] == ["finished"] * 3


def test_ids_that_look_like_the_ends_of_lines(jam, inputs, tmp_path, capsys):
    """An error of that song alone; the others are sung, and metadata.json has each once."""
    change(inputs, 0, id="next\u0085line")
    change(inputs, 2, id="par\u2029agraph")
    code, metadata = run(jam, inputs, tmp_path / "out")
    assert code == 1 and [song["status"] for song in metadata] == ["failed", "made", "failed"]
    assert [song["id"] for song in metadata] == ["next\u0085line", "two, too", "par\u2029agraph"]
    assert capsys.readouterr().err.count("error:") == 2


def test_a_manifest_among_the_results(jam, inputs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    moved = shutil.move(inputs, out / "metadata.json")
    with pytest.raises(UserError, match="metadata.json: would be overwritten; move it out of --out-dir"):
        run(jam, moved, out)
    assert len(json.loads(moved.read_text())) == 3


def test_one_song_needs_one_process(monkeypatch):
    """torchrun without a manifest: every process writes the same file."""
    monkeypatch.setattr(sample, "Processes", lambda: types.SimpleNamespace(world=2))
    with pytest.raises(UserError, match="several processes make the songs of a --manifest"):
        main([])


def test_a_song_does_not_depend_on_its_place(jam, inputs, tmp_path):
    """Noise drawn from one generator for all songs; a variant that depends on how many there are."""
    crop = ["--random-crop-style", "--num-style-secs", 0.3]
    run(jam, inputs, tmp_path / "three", "--batch-infer-num", 2, *crop)
    made = sounds(tmp_path / "three")
    assert len(made) == 18 and made["generated/one.wav"] != made["generated/one-2.wav"]
    entries = json.loads(inputs.read_text())
    inputs.write_text(json.dumps(entries[2:0:-1]))
    run(jam, inputs, tmp_path / "two", *crop)
    two = sounds(tmp_path / "two")
    assert len(two) == 6 and all(made[name] == content for name, content in two.items())
    run(jam, inputs, tmp_path / "plain", "--seed", 1)
    files = ["--lyrics", tmp_path / "inputs" / "drei.json", "--style", tmp_path / "inputs" / "drei.mp3",
             "--out", tmp_path / "alone.wav"]
    main([str(x) for x in [*jam, "--seed", 1, "--duration", 2.5, *files]])
    alone = (tmp_path / "alone.wav").read_bytes()
    assert alone == sounds(tmp_path / "plain")["generated/drei.wav"]
    # the same noise, but the style is of another part of the sound file
    assert alone != made["generated/drei-2.wav"]


@pytest.mark.slow
def test_where_a_style_comes_from(jam, inputs, tmp_path):
    """Sound, text, a name or the flags; ignored it is the negative style; each is another song."""
    def style(*more):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        run(jam, inputs, out, *more)
        return json.loads((out / "generated" / "one.wav.json").read_text())["style"]
    inputs.write_text(json.dumps(json.loads(inputs.read_text())[:1]))
    sound, text, none = style(), style("--use-prompt-style"), style("--ignore-style")
    assert none == [1.0] + [0.0] * (WIDTH - 1)
    change(inputs, 0, audio_path=None)
    assert style() == text                                   # audio_path is not needed
    flags = ["--style-text", "dream pop, slow: 120:1"]
    change(inputs, 0, prompt_path=None)
    assert style(*flags) == text
    change(inputs, 0, style=str(jam[9]))                     # the vocal vector's file
    assert style(*flags) == none
    change(inputs, 0, style="inputs/one.mp3:0.5")            # found beside the manifest, too
    assert style() == sound
    assert len({str(s) for s in (sound, text, none)}) == 3


def test_files_beside_the_manifest_come_first(jam, inputs, tmp_path, monkeypatch):
    """The published manifests are written relative to the working directory of their project."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = inputs.rename(elsewhere / "input.json")
    monkeypatch.chdir(tmp_path)
    assert run(jam, moved, tmp_path / "out")[0] == 0
    (elsewhere / "inputs").mkdir()
    (elsewhere / "inputs" / "one.json").write_text("[]")
    cfg = SampleConfig(manifest=moved)
    assert song_of("one", read_manifest(moved, 1)[0][1], cfg).lyrics == elsewhere / "inputs" / "one.json"


BROKEN = [
    ({"lrc_path": None}, '"lrc_path" is None; expected a text'), ({"lrc_path": 3}, '"lrc_path" is 3'),
    ({"lrc_path": "inputs"}, "inputs: no such file beside"), ({"lrc_path": "\0"}, "no such file beside"),
    ({"lrc_path": "x" * 5000}, "no such file beside"), ({"audio_path": "no.mp3"}, "no.mp3: no such file"),
    ({"audio_path": ""}, '"audio_path" is \'\''),
    ({"duration": "2"}, "\"duration\" is '2'; expected seconds"),
    ({"duration": True}, '"duration" is True'), ({"duration": 10 ** 330}, '"duration" is 1000'),
    ({"seed": -1}, '"seed" is -1; expected 0 to'),
    ({"seed": 1.5}, '"seed" is 1.5'), ({"seed": 2 ** 63}, "expected 0 to"), ({"sed": 1}, "sed is unknown"),
    ({"id": "a/b"}, "without /, 200 bytes"), ({"id": ".."}, "without /"),
    ({"id": "x" * 201}, "without /"), ({"id": "a\nb"}, "printable"), ({"id": "\ud800"}, "printable"),
    ({"duration": 1e7}, '"duration" is 10000000.0; expected seconds above 0'),
    ({"duration": 0.001}, "a song of 0.00 s; expected 0.01 to 1000000 s"),
    ({"duration": 1}, "past the duration"),
    ({"duration": -1}, '"duration" is -1; expected seconds above 0'),
    ({"audio_path": "inputs/one.txt"}, "no such style or file"),
    ({"lrc_path": "inputs/one.mp3"}, "not UTF-8 text")]


def test_broken_entries_are_named(jam, inputs, tmp_path, capsys):
    """One line for each broken entry, with its id; the other songs are made; the exit code tells."""
    good, *rest = json.loads(inputs.read_text())
    entries = [{k: v for k, v in (good | {"id": f"broken {i}"} | more).items() if v is not None}
               for i, (more, _) in enumerate(BROKEN)]
    inputs.write_text(json.dumps([*entries, *rest]))
    code, metadata = run(jam, inputs, tmp_path / "out")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == len(BROKEN)
    assert [m["status"] for m in metadata] == ["failed"] * len(BROKEN) + ["made"] * len(rest)
    told = {m["id"]: m["error"] for m in metadata}
    for entry, (_, fragment) in zip(entries, BROKEN):
        assert fragment in told[entry["id"]]
        start = f'error: song "{ascii(entry["id"])[1:-1]}": '
        assert any(line.startswith(start) and fragment in line for line in errors), entry["id"][:20]


@pytest.mark.parametrize("content, fragment", [
    ([], "expected a JSON list of songs"), ({"id": "a"}, "expected a JSON list of songs"), ("[", "line 1"),
    ([{"id": "a"}, {"id": "a"}], 'entry 1 and entry 2 would both be "a"'),
    ([{"id": "a-2"}, {"id": "a"}], 'entry 1 and entry 2 would both be "a-2"'),
    ([{"id": "entry 2"}, {}], 'would both be "entry 2"')])
def test_a_broken_manifest(content, fragment, tmp_path):
    """Two songs with the same files: the second would overwrite the first."""
    path = tmp_path / "input.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=fragment):
        read_manifest(path, 2)


@pytest.mark.parametrize("flags, fragment", [
    (["--manifest", "input.json"], "--manifest and --out-dir: one needs the other"),
    (["--manifest", "m", "--out-dir", "x", "--lyrics", "l.json"], "leave out --lyrics and --out"),
    (["--out", "/"], "expected a file's name"), (["--out", ""], "expected a file's name"),
    (["--format", "mp3"], "--format mp3: needs --manifest"),
    (["--out-dir", "x"], "one needs the other"), (["--use-prompt-style"], "needs --manifest"),
    (["--batch-infer-num", "0"], "expected 1 to 100000"),
    (["--ignore-style", "--style", "a.mp3"], "--ignore-style"), (["--dtype", "half"], "--dtype half:"),
    (["--num-style-secs", "0"], "--num-style-secs 0.0"), (["--style-start", "-1"], "--style-start -1.0"),
    (["--vae", "x"], "--vae x"), (["--negative-style", "loud"], "--negative-style loud: no such file")])
def test_settings_that_do_not_go_together(flags, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main(flags)
    assert fragment in str(caught.value) and not list(tmp_path.iterdir())


def test_out_dir_that_is_a_file(jam, inputs, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="--out-dir"):
        main([str(x) for x in [*jam, "--manifest", inputs, "--out-dir", tmp_path / "out"]])


def test_a_device_without_memory_is_reported(inputs, tmp_path, jam, monkeypatch, capsys):
    """One song too long for the GPU must not end the night's run."""
    sing = Model.sing

    def fail(model, prompt, *rest):
        if prompt.song.id == "one":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return sing(model, prompt, *rest)
    monkeypatch.setattr(Model, "sing", fail)
    code, metadata = run(jam, inputs, tmp_path / "out")
    assert code == 1 and [m["status"] for m in metadata] == ["failed", "made", "made"]
    assert 'song "one": OutOfMemoryError: CUDA out of memory. Tried' in capsys.readouterr().err


def test_the_style_encoder_is_gone_before_the_network_comes(jam, inputs, tmp_path, monkeypatch):
    """Two models of gigabytes at once on one GPU."""
    import gc

    from style import StyleEncoder
    seen = []
    monkeypatch.setattr(sample, "Model", lambda *args, make=Model: (
        seen.append(sum(type(o) is StyleEncoder for o in gc.get_objects())), make(*args))[1])
    run(jam, inputs, tmp_path / "out")
    main([str(x) for x in [*jam, "--lyrics", tmp_path / "inputs" / "one.json", "--style-text", "slow",
                           "--out", tmp_path / "alone.wav"]])
    assert seen == [0, 0]


def test_report_keeps_the_order(tmp_path):
    class Two:
        rank, world, main = 0, 2, True

        def wait(self):
            pass
    report = Report(tmp_path, Two())
    report.add("c", "made")
    Two.rank = 1
    report.add("a", "failed", error="ü")
    assert [(s["id"], s["error"]) for s in report.merge(["a", "b", "c"])] == [("a", "ü"), ("c", "")]
