"""songs/pairs.py and sample.py --best-of: which song is chosen, what is kept, how a broken run continues."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import BABY, ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import config
import evaluate
import sample
from config import PRESETS, STYLES, WEIGHTS, DPOConfig, EvaluateConfig, SampleConfig, UserError
from phonemes import SymbolTable, load_phonemizer
from sample import Model
from songs import takes
from songs.pairs import PairsConfig, choose, make_pairs
from support.cli import parse
from support.processes import Processes
from train_dpo import Pairs, work

WORDS = [{"word": "hello", "start": 0.2, "end": 0.7}, {"word": "world", "start": 0.8, "end": 1.4}]


def by_seed(path, record):
    """A scorer whose favourites are known."""
    return [0.3, 0.9, 0.1, 0.9][record["request"]["seed"] % 4]


def turned(path, record):
    return -by_seed(path, record)


def broken(path, record):
    if record["request"]["seed"] == 1:
        raise KeyError("tempo")
    return 0.0


def nowhere(path, record):
    return float("nan")


SCORER = "test_pairs:by_seed"


@pytest.fixture
def prompts(tmp_path):
    """Two prompts of unlike length; returns the manifest's path."""
    entries = []
    for i, name in enumerate(["one", "two, too"]):
        (tmp_path / f"{name}.json").write_text(json.dumps(WORDS[:2 - i]))
        entries.append({"id": name, "lrc_path": f"{name}.json", "duration": 2.0 - i / 2,
                        "style": ["female", "male"][i]})
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(entries))
    return path


def run(tiny_folder, prompts, *more):
    """songs.pairs on the tiny model. Returns: its exit code and the folder of the first round."""
    code, out = 0, prompts.parent / "out"
    try:
        flags = ["--manifest", prompts, "--model", tiny_folder, "--out", out, "--scorer", SCORER]
        make_pairs(parse(PairsConfig, "", [str(x) for x in [*flags, "--device", "cpu", *more]]))
    except SystemExit as end:
        code = end.code
    return code, out / "round-1"


def read(path):
    return json.loads(path.read_text())


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]), min_size=2, max_size=6),
       st.sampled_from([0.0, 0.5, 9.0]))
def test_the_best_and_the_worst(scores, margin):
    """A pair whose winner is not better, or a tie that is settled by chance."""
    chosen = choose(scores, margin)
    if max(scores) - min(scores) <= margin:
        assert chosen is None
        return
    best, worst = chosen
    assert all(scores[best] >= x for x in scores) and all(scores[worst] <= x for x in scores)
    assert max(scores) not in scores[:best] and min(scores) not in scores[:worst]


def test_pairs(tiny_folder, tiny_preset, prompts, capsys):
    """The published form: latents frames-first and as long as the song, words with phonemes, the style."""
    code, folder = run(tiny_folder, prompts)
    assert code == 0
    made = read(folder / "pairs.json")
    assert [(pair["id"], pair["win_seed"], pair["win_score"], pair["loss_seed"], pair["loss_score"])
            for pair in made] == [("one", 1, 0.9, 2, 0.1), ("two, too", 1, 0.9, 2, 0.1)]
    assert read(folder / "scores.json")["scores"]["one"] == {"0": 0.3, "1": 0.9, "2": 0.1, "3": 0.9}
    styles = load_file(tiny_folder / STYLES)
    for i, (pair, frames) in enumerate(zip(made, (94, 71))):             # 2 s and 1.5 s, rounded up
        win, loss = (torch.load(folder / pair[key]) for key in ("win_latent", "loss_latent"))
        sung = [torch.load(folder / "cfm_latents" / f"{pair['id']}-{n}.pt") for n in (2, 3)]
        assert torch.equal(win, sung[0][:frames]) and torch.equal(loss, sung[1][:frames])
        assert len(win) == len(loss) == frames and not torch.equal(win, loss)
        assert torch.equal(torch.load(folder / pair["style"]), styles[["female", "male"][i]])
        words = read(folder / pair["transcription"])["word"]
        assert [w["word"] for w in words] == ["hello", "world"][:2 - i] and words[0]["phoneme"] == "həloʊ"
    assert "2 pairs of 2 prompts, 8 songs; mean score 0.550, of winners 0.900, of losers 0.100" \
        in capsys.readouterr().out


def test_a_folder_is_one_runs(tiny_folder, prompts, held):
    """A second run that deletes the pairs, and sings another round's songs beside the first."""
    run(tiny_folder, prompts)
    out = prompts.parent / "out"
    for number in (1, 2):
        with held(out) as told, pytest.raises(UserError) as caught:
            run(tiny_folder, prompts, "--round", number)
        assert told in str(caught.value) and (out / "round-1" / "pairs.json").is_file()
    assert not (out / "round-2").exists()


def test_pairs_of_songs_longer_than_the_window(tiny_folder, tiny_preset, prompts):
    """Latents cut to one window, with words after their end."""
    entries = [read(prompts)[0] | {"duration": 22.0}]
    prompts.write_text(json.dumps(entries))
    code, folder = run(tiny_folder, prompts, "--candidates", 2)
    [pair] = read(folder / "pairs.json")
    lengths = {len(torch.load(folder / pair[key])) for key in ("win_latent", "loss_latent")}
    assert code == 0 and lengths == {1032} and 1032 > tiny_preset.model.max_frames


def test_what_was_made_is_what_training_takes(tiny_folder, tiny_preset, prompts, monkeypatch):
    """Lengths, channels or names that train_dpo.py refuses; the frames that the network sang padded."""
    posterior = torch.ones(54, 94)
    torch.save(posterior, prompts.parent / "truth.pt")
    entries = read(prompts)
    entries[0]["gt_latent"] = "truth.pt"
    prompts.write_text(json.dumps(entries[:1]))
    code, folder = run(tiny_folder, prompts)
    monkeypatch.setitem(config.PRESETS, "tiny", tiny_preset)
    cfg = DPOConfig(preset="tiny", assets=BABY, pairs=(str(folder / "pairs.json"),), sft="gt", steps=1,
                    batch=1, init_from=tiny_folder / WEIGHTS, out=prompts.parent / "run",
                    tensorboard=False, device="cpu")
    item = Pairs(cfg, tiny_preset, SymbolTable(load_phonemizer(BABY / "phonemizer.pt").symbols))[0, 5]
    assert item["latents"].shape == item["loser"].shape == item["truth"].shape == (94, 27)
    assert item["duration_rel"] == pytest.approx(94 / tiny_preset.model.max_frames)
    work(cfg, Processes())
    assert (cfg.out / "last" / WEIGHTS).is_file()


@pytest.mark.parametrize("shape, fragment", [((27, 94), "(27, 94); expected (54, 94)"),
                                             ((54, 90), "(54, 90); expected (54, 94)"), (None, "truth.pt: ")])
def test_a_true_song_that_does_not_fit(tiny_folder, prompts, shape, fragment, capsys):
    """The others are paired; the exit code tells."""
    if shape:
        torch.save(torch.zeros(shape), prompts.parent / "truth.pt")
    else:
        (prompts.parent / "truth.pt").write_text("no tensor")
    entries = read(prompts)
    entries[0]["gt_latent"] = "truth.pt"
    prompts.write_text(json.dumps(entries))
    code, folder = run(tiny_folder, prompts)
    assert code == 1 and [pair["id"] for pair in read(folder / "pairs.json")] == ["two, too"]
    assert 'error: song "one": ' in (err := capsys.readouterr().err) and fragment in err


def test_margin_rounds_and_another_scorer(tiny_folder, prompts, capsys, monkeypatch):
    """A second round that sings the first one's songs again; a pair without a difference."""
    code, folder = run(tiny_folder, prompts, "--margin", 0.8)
    assert code == 0 and read(folder / "pairs.json") == []
    assert "0 pairs of 2 prompts, 8 songs:" in capsys.readouterr().out
    monkeypatch.setattr(Model, "sing", lambda *args: pytest.fail("sang a song again"))
    assert run(tiny_folder, prompts, "--scorer", "test_pairs:by_seed,test_pairs:turned:2") == (0, folder)
    assert [(pair["win_seed"], pair["loss_seed"]) for pair in read(folder / "pairs.json")] == [(2, 1)] * 2
    monkeypatch.undo()
    run(tiny_folder, prompts, "--round", 2, "--candidates", 3, "--seed", 5)
    second = folder.with_name("round-2")
    assert list(read(second / "scores.json")["scores"]["one"]) == ["1005", "1006", "1007"]
    assert [pair["win_seed"] for pair in read(second / "pairs.json")] == [1005, 1005]


def test_broken_prompts_and_scorers(tiny_folder, prompts, capsys):
    """One of them takes the others with it, or is passed over without a word."""
    entries = read(prompts)
    prompts.write_text(json.dumps([entries[0] | {"lrc_path": "none.json"}, entries[1]]))
    code, folder = run(tiny_folder, prompts)
    assert code == 1 and [pair["id"] for pair in read(folder / "pairs.json")] == ["two, too"]
    assert 'error: song "one": none.json: no such file' in capsys.readouterr().err
    code, folder = run(tiny_folder, prompts, "--scorer", "test_pairs:broken")
    assert code == 1 and read(folder / "pairs.json") == []
    err = capsys.readouterr().err
    assert "--scorer test_pairs:broken: KeyError: 'tempo'" in err and "two, too-2.flac" in err
    assert run(tiny_folder, prompts, "--scorer", "test_pairs:nowhere")[0] == 1
    assert "is nan; expected a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("args, fragment", [
    (["--candidates", "1"], "--candidates 1: expected 2 to 1000"),
    (["--round", "0"], "--round 0: expected 1"), (["--margin", "nan"], "--margin nan: expected 0 or more"),
    (["--scorer", "taste"], "--scorer taste: expected phonemes, timing, style, audiobox, songeval or MODULE"),
    (["--scorer", "test_pairs:no_such"], "--scorer test_pairs:no_such: module 'test_pairs' has no attribute"),
    (["--scorer", ":f"], "--scorer :f: Empty module name"),
    (["--scorer", "faulty:f"], "faulty:f: name 'x' is not defined"),
    (["--scorer", "test_pairs:SCORER"], "is 'test_pairs:by_seed'; expected a function"),
    (["--seed", str(2 ** 63 - 3)], "--seed"), (["--manifest", "none.json"], "none.json: No such file"),
    (["gt"], "none.pt: no such file beside")])
def test_mistakes(tiny_folder, prompts, args, fragment, monkeypatch):
    """Told before anything is sung."""
    if args == ["gt"]:
        prompts.write_text(json.dumps([read(prompts)[0] | {"gt_latent": "none.pt"}]))
        args = []
    (prompts.parent / "faulty.py").write_text("x")
    monkeypatch.syspath_prepend(prompts.parent)
    monkeypatch.setattr(Model, "sing", lambda *args: pytest.fail("sang"))
    with pytest.raises(UserError) as caught:
        run(tiny_folder, prompts, *args)
    assert fragment in str(caught.value)


def test_phones_at_times_of_their_own(tiny_folder, tiny_preset, prompts, monkeypatch):
    """Words that are trained at other times than they were sung at."""
    (prompts.parent / "one.json").unlink()
    (prompts.parent / "one.lrc").write_text("[00:00.20]<00:00.20>hel<00:01.00>lo<00:01.40>\n")
    prompts.write_text(json.dumps([read(prompts)[0] | {"lrc_path": "one.lrc"}]))
    _, folder = run(tiny_folder, prompts)
    monkeypatch.setitem(config.PRESETS, "tiny", tiny_preset)
    table = SymbolTable(load_phonemizer(BABY / "phonemizer.pt").symbols)
    item = Pairs(DPOConfig(pairs=(str(folder / "pairs.json"),)), tiny_preset, table)[0, 0]
    cell_hz = 4 * 24000 / 512
    assert item["phonemes"].tolist().index(table.ids["l"]) == int(1.0 * cell_hz)


def test_broken_latents(tiny_folder, prompts, capsys):
    """A traceback after hours of singing."""
    _, folder = run(tiny_folder, prompts)
    (folder / "cfm_latents" / "one-2.pt").write_bytes(b"")
    code, _ = run(tiny_folder, prompts)
    assert code == 1 and [pair["id"] for pair in read(folder / "pairs.json")] == ["two, too"]
    assert "one-2.pt: " in capsys.readouterr().err


def test_killed(tiny_folder, prompts, monkeypatch):
    """A killed run that begins again, or leaves an earlier run's pairs over other songs."""
    sung, sing = [], Model.sing
    run(tiny_folder, prompts, "--steps", 2)
    assert (prompts.parent / "out/round-1/pairs.json").exists()

    def killed(*args):
        if len(sung) == 5:
            raise KeyboardInterrupt
        sung.append(args[2])
        return sing(*args)
    monkeypatch.setattr(Model, "sing", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_folder, prompts)
    assert not (prompts.parent / "out/round-1/pairs.json").exists() and sung == [0, 1, 2, 3, 0]
    monkeypatch.setattr(Model, "sing", lambda *args: (sung.append(args[2]), sing(*args))[1])
    assert run(tiny_folder, prompts)[0] == 0 and sung == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.slow
def test_two_processes_make_the_same_pairs(tiny_folder, prompts):
    """Pairs that depend on who sang them, or of one process's prompts alone."""
    run(tiny_folder, prompts)
    both = prompts.parent / "both"
    done = subprocess.run([str(x) for x in [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
        "songs.pairs", "--manifest", prompts, "--model", tiny_folder, "--out", both, "--scorer", SCORER,
        "--device", "cpu"]], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1",
                          "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'tests' / 'songs'}"})
    assert done.returncode == 0, done.stderr
    alone = prompts.parent / "out" / "round-1"
    for name in ("pairs.json", *(f"pairs/{path.name}" for path in (alone / "pairs").iterdir())):
        assert (both / "round-1" / name).read_bytes() == (alone / name).read_bytes()


# The best of N

def sung_by(tiny_folder, *args):
    sample.main([str(x) for x in ["--model", tiny_folder, "--device", "cpu", "--scorer", SCORER, *args]])


def test_best_of(tiny_folder, tmp_path, capsys):
    """Another song than the best under its name; candidates that are gone; an account of another song."""
    out = tmp_path / "song.wav"
    sung_by(tiny_folder, "--best-of", 3, "--out", out, "--lyrics", ROOT / "examples" / "song.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([
        "song.html", "song.png", "song.plan.lrc", *(
            f"{name}.wav{end}" for name in ("song", "song-1", "song-2", "song-3")
            for end in ("", ".json", ".safetensors"))])
    first, second = ((tmp_path / f"song-{i}.wav").read_bytes() for i in (1, 2))
    assert out.read_bytes() == second != first
    about = read(tmp_path / "song.wav.json")
    assert about["best_of"] == {"by": [SCORER, "ear", True], "scores": {"0": 0.3, "1": 0.9, "2": 0.1}}
    told = capsys.readouterr().out
    assert "the best of 3: seed 1" in told and f"song-2.wav: {SCORER} 0.9000" in told
    sung_by(tiny_folder, "--config", tmp_path / "song.wav.json", "--out", tmp_path / "again.wav")
    assert (tmp_path / "again.wav").read_bytes() == out.read_bytes()
    assert not (tmp_path / "again-1.wav").exists()


@pytest.mark.slow
def test_best_of_a_manifest(tiny_folder, prompts, monkeypatch):
    """Candidates that are sung again when another scorer, or one more of them, is asked for."""
    out, sung, sing = prompts.parent / "songs", [], Model.sing
    monkeypatch.setattr(Model, "sing", lambda model, prompt, seed, *rest: (
        sung.append(seed), sing(model, prompt, seed, *rest))[1])

    def again(*more):
        sung.clear()
        sung_by(tiny_folder, "--manifest", prompts, "--out-dir", out, "--format", "wav", *more)
        return read(out / "metadata.json")
    made = again("--best-of", 2)
    assert sung == [0, 1, 0, 1] and [song["seeds"] for song in made] == [[1], [1]]
    assert [song["songs"] for song in made] == [["generated/one.wav"], ["generated/two, too.wav"]]
    for folder in ("generated", "generated_orig"):
        files = [(out / folder / f"one{name}.wav").read_bytes() for name in ("", "-1", "-2")]
        assert files[0] == files[2] != files[1]
    latents = [torch.load(out / "cfm_latents" / f"one{name}.pt") for name in ("", "-2")]
    assert torch.equal(*latents)
    assert [song["status"] for song in again("--best-of", 2)] == ["finished"] * 2 and not sung
    other = ["--scorer", "test_pairs:turned"]
    assert [song["seeds"] for song in again("--best-of", 2, *other)] == [[0], [0]] and sung == [0, 0]
    assert again("--best-of", 3, *other)[0]["seeds"] == [2] and sung == [2, 2]       # -0.1 is the most
    (out / "generated" / "one.wav").unlink()
    assert again("--best-of", 3, *other)[0]["seeds"] == [2] and sung == [2]
    assert again("--best-of", 3, *other)[0]["status"] == "finished" and not sung
    cfg = EvaluateConfig(songs=out)
    rows, _ = evaluate.evaluated(out, cfg, evaluate.recogniser_of(cfg), {})
    assert [row["id"] for row in rows] == ["one", "two, too"]            # not the candidates


def test_killed_before_the_best_is_written(tiny_folder, prompts, monkeypatch):
    """The best of other candidates, taken for that of these."""
    prompts.write_text(json.dumps(read(prompts)[:1]))
    args = ["--manifest", prompts, "--out-dir", prompts.parent / "songs", "--best-of", 2]
    sung_by(tiny_folder, *args)                                 # of seeds 0 and 1 it is 1
    write = takes.write

    def killed(take, prompt, request, cfg, outputs, **more):
        if "best_of" in more:
            raise KeyboardInterrupt
        write(take, prompt, request, cfg, outputs, **more)
    monkeypatch.setattr(takes, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        sung_by(tiny_folder, *args, "--seed", 1, "--scorer", "test_pairs:turned")
    monkeypatch.undo()
    sung_by(tiny_folder, *args, "--seed", 1, "--scorer", "test_pairs:turned")
    assert read(prompts.parent / "songs" / "metadata.json")[0]["seeds"] == [2]


@pytest.mark.parametrize("args, fragment", [
    (["--best-of", 0], "--best-of 0: expected 1 to 100000"),
    (["--best-of", 2, "--batch-infer-num", 2], "--best-of 2: chooses one song; leave out --batch"),
    (["--best-of", 2, "--scorer", "taste"], "--scorer taste: expected phonemes"),
    (["--best-of", 2, "--recogniser", "dog"], "--recogniser dog: expected one of ear, wav2vec2")])
def test_mistakes_of_best_of(tiny_folder, tmp_path, args, fragment, monkeypatch):
    monkeypatch.setattr(Model, "sing", lambda *args: pytest.fail("sang"))
    if "dog" in args:
        args = [*args, "--scorer", "phonemes"]
    with pytest.raises(UserError) as caught:
        sung_by(tiny_folder, *args, "--out", tmp_path / "song.wav")
    assert fragment in str(caught.value) and not list(tmp_path.iterdir())


def test_names_that_candidates_take(tiny_folder, prompts):
    """A song called as another one's candidate would be overwritten."""
    entries = read(prompts)
    prompts.write_text(json.dumps([entries[0], entries[1] | {"id": "one-2"}]))
    with pytest.raises(UserError, match='entry 1 and entry 2 would both be "one-2"'):
        sung_by(tiny_folder, "--manifest", prompts, "--out-dir", prompts.parent / "songs", "--best-of", 2)


def test_who_listens():
    """The embedded model's ear to real songs."""
    cpu = torch.device("cpu")
    heard = [sample.resolve(SampleConfig(), PRESETS[name], cpu).recogniser for name in ("baby", "jam-0.5")]
    assert heard == ["ear", "wav2vec2"]
    assert sample.resolve(SampleConfig(recogniser="ear"), PRESETS["jam-0.5"], cpu).recogniser == "ear"
