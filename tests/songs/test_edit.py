"""Edits: what is sung again, that the rest is the same to the bit, that an account makes the edit again."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sample
import songs.splice
from config import CONFIG, PRESETS, WEIGHTS, CodecConfig, UserError
from lyrics.timing import Line, Lyrics, Part, Word
from model import DiT
from sample import main
from songs.before import Before
from songs.edit import Edit, changes, cut_by_style, frames_before, joined, stretches_of, style_at
from songs.splice import noise_after
from songs.tunes import noise_of
from support.audio import fingerprint
from support.checkpoint import preset_to_json
from vae import Oobleck, layouts

LYRICS = [[("hold", 0.5, 1.0), ("the", 1.0, 1.3), ("light", 1.3, 2.0)],
          [("sing", 3.0, 3.5), ("for", 3.5, 3.8), ("me", 3.8, 4.5)],
          [("go", 5.5, 6.0), ("home", 6.0, 7.0)]]


def write_lyrics(path, lines=LYRICS, **change):
    """Lyrics with some words changed: {"light": ("dark", 1.3, 2.0)}; None leaves a word out."""
    words = [[change.get(word, (word, *times)) for word, *times in line] for line in lines]
    words = [[dict(zip(("word", "start", "end"), word)) for word in line if word] for line in words]
    path.write_text(json.dumps({"word": sum(words, []), "segment": [
        {"segment": " ".join(w["word"] for w in line), "start": line[0]["start"], "end": line[-1]["end"]}
        for line in words]}))
    return path


@pytest.fixture(scope="module")
def song(tiny_folder, tmp_path_factory):
    """A finished song, and what made it."""
    folder = tmp_path_factory.mktemp("song")
    main(["--model", str(tiny_folder), "--lyrics", str(write_lyrics(folder / "words.json")), "--seed", "3",
          "--duration", "8", "--style", "female", "--page", "false", "--out", str(folder / "song.wav")])
    return folder / "song.wav"


@pytest.fixture
def edit(song, tmp_path):
    """sample.py --edit of the song, or of another one; the new song's path."""
    def call(*args, of=song, out="edit.wav"):
        main(["--edit", f"{of}.json", "--page", "false", "--out", str(tmp_path / out), *map(str, args)])
        return tmp_path / out
    return call


def about(path):
    return json.loads(Path(f"{path}.json").read_text())


def differing(old, new, lead_s=0.0):
    """The first and the last second at which a song differs from one that begins lead_s later in it."""
    (old, rate), (new, _) = (soundfile.read(path, dtype="int16", always_2d=True) for path in (old, new))
    shifted, lead = np.zeros_like(new), round(lead_s * rate)
    shifted[lead:lead + len(old)] = old[:len(new) - lead]
    [places] = (shifted != new).any(1).nonzero()
    return places[0] / rate, (places[-1] + 1) / rate


def test_one_word_is_sung_again(song, edit, tmp_path, capsys):
    """A change of one word that reaches beyond its margin; a report of other places than differ."""
    new = edit("--lyrics", write_lyrics(tmp_path / "new.json", light=("night", 1.3, 2.0)))
    first, end = differing(song, new)
    assert 1.18 < first < 1.32 and 1.9 < end < 2.12
    [[a, b]], report = about(new)["edit"]["spans"], capsys.readouterr().out
    assert a <= first + 1e-6 and end <= b + 1e-6 and about(new)["edit"]["outside"] == 0
    assert f'sung again: {a:.2f} to {b:.2f} s ("night" for "light"); outside: identical' in report
    assert len(soundfile.read(new)[0]) == len(soundfile.read(song)[0])
    assert [word["word"] for word in about(new)["word"]][:3] == ["hold", "the", "night"]


@pytest.mark.parametrize("args, begins, ends", [
    (("--line", "2", "--seed", "5"), 3.0, 4.5), (("--span", "5.6-6.5", "--seed", "5"), 5.6, 6.5),
    (("--line", "3", "--style", "male"), 5.5, 7.0)])
def test_a_place_is_sung_again(song, edit, args, begins, ends):
    """Another seed or style for a place that changes others."""
    first, end = differing(song, edit(*args))
    assert begins - 0.12 < first < begins + 0.1 and ends - 0.1 < end < ends + 0.12


def test_two_places_at_once(song, edit, tmp_path):
    """Words that move, go, and are new, in one edit: what lies between them stays."""
    new = edit("--lyrics", write_lyrics(tmp_path / "new.json", hold=("hold", 0.4, 0.9), home=None))
    (old, rate), (wave, _) = (soundfile.read(path, dtype="int16") for path in (song, new))
    assert (old[round(2.2 * rate):round(5.7 * rate)] == wave[round(2.2 * rate):round(5.7 * rate)]).all()
    assert about(new)["edit"]["words"] == ['"hold" -0.10 s', 'without "home"']


def test_an_edit_is_made_again_from_its_account(song, edit, tmp_path):
    """A chain of edits, one of another style, one longer at both ends; all files but one account are gone."""
    first = edit("--lyrics", write_lyrics(tmp_path / "new.json", light=("night", 1.3, 2.0)), out="1.wav")
    second = edit("--line", 2, "--style", "male", of=first, out="2.wav")
    third = edit("--lead", 1, "--duration", 9.5, "--seed", 8, of=second, out="3.wav")
    lead = about(third)["edit"]["lead"] * 512 / 24000
    assert abs(lead - 1) < 0.011 and len(soundfile.read(third)[0]) == 9.5 * 24000
    assert about(third)["word"][0]["start"] == pytest.approx(0.5 + lead)
    (old, rate), (new, _) = (soundfile.read(path, dtype="int16") for path in (second, third))
    begin = round(lead * rate)
    assert (new[begin + 2000:begin + 7 * rate] == old[2000:7 * rate]).all()
    (tmp_path / "moved").mkdir()
    account = shutil.move(f"{third}.json", tmp_path / "moved" / "3.wav.json")
    kept = third.read_bytes()
    for path in (first, second, third):
        path.unlink()
    main(["--config", str(account), "--page", "false", "--out", str(tmp_path / "again.wav")])
    assert (tmp_path / "again.wav").read_bytes() == kept
    assert len(about(tmp_path / "again.wav")["chain"]) == 3


def test_a_song_without_its_latents(song, edit, tmp_path):
    """A song whose latents are gone, or are another's, is sung again; its sound is the file's."""
    for name in ("song.wav", "song.wav.json"):
        shutil.copy(song.with_name(name), tmp_path / name)
    (tmp_path / "song.wav.safetensors").write_bytes(b"of another song")
    new = edit("--line", 2, of=tmp_path / "song.wav")
    assert new.read_bytes() == edit("--line", 2, out="other.wav").read_bytes()


@pytest.mark.slow
def test_lossy_files(song, edit, tmp_path):
    """An edit of an MP3, made again from its account alone: what was decoded once is decoded again."""
    first = edit("--line", 1, out="1.mp3")
    second = edit("--span", "6-6.5", "--seed", 4, of=first, out="2.mp3")
    kept = second.read_bytes()
    first.unlink()
    main(["--config", f"{second}.json", "--page", "false", "--out", str(tmp_path / "again.mp3")])
    assert (tmp_path / "again.mp3").read_bytes() == kept


def test_the_style_of_a_line_stays(song, edit, tmp_path):
    """A word of a line that another singer sings is sung again by the song's singer."""
    line = edit("--line", 2, "--style", "male", out="1.wav")
    word = write_lyrics(tmp_path / "new.json", **{"for": ("from", 3.5, 3.8)})
    inherited = edit("--lyrics", word, of=line, out="2.wav")
    chosen = edit("--lyrics", word, "--style", "male", of=line, out="3.wav")
    other = edit("--lyrics", word, "--style", "female", of=line, out="4.wav")
    waves = [soundfile.read(path)[0] for path in (inherited, chosen, other)]
    assert (waves[0] == waves[1]).all() and (waves[0] != waves[2]).any()
    chain = about(inherited)["chain"] + [about(inherited)]
    assert style_at(chain, round(3.6 * 24000 / 512)).tolist() == torch.eye(2, 16)[1].tolist()
    assert style_at(chain, 0).tolist() == torch.eye(2, 16)[0].tolist()


@pytest.mark.slow
def test_a_line_keeps_its_style(song, edit, tmp_path, monkeypatch):
    """Another line, or a tune of the whole song, sung in the style of a line that was edited before."""
    monkeypatch.chdir(tmp_path)
    edit("--line", 2, "--style", "male", out="1.wav")
    main(["--edit", "./1.wav.json", "--line", "1", "--page", "false", "--out", "2.wav"])
    edit("--line", 1, "--style", "female", of="1.wav", out="3.wav")
    waves = [soundfile.read(path)[0] for path in ("2.wav", "3.wav")]
    assert not about("2.wav")["edit"]["styled"] and (waves[0] == waves[1]).all()
    whole = edit("--seed", 9, "--variation", "0.2", of="1.wav", out="4.wav")
    [[a, b]] = about("1.wav")["edit"]["frames"]
    assert about(whole)["edit"]["frames"] == [[0, a], [a, b], [b, 375]]
    assert about(whole)["edit"]["spans"] == [[0, 8]]
    assert cut_by_style([(a - 9, a + 1), (b - 5, b + 9)], [{}, about("1.wav")], 0, 4) == [
        (a - 9, a + 1), (b - 5, b), (b, b + 9)]
    main(["--config", "./2.wav.json", "--page", "false", "--out", "5.wav"])
    assert Path("2.wav").read_bytes() == Path("5.wav").read_bytes()


def test_a_lead_is_whole_frames(song, edit):
    """A lead that cuts a part of a frame off the song's end, or sings one there."""
    odd = edit("--duration", 8.0165, out="1.wav")                    # 375.8 frames
    for lead in (0.398, 0.53):
        new = edit("--lead", lead, of=odd, out="2.wav")
        assert len(about(new)["edit"]["spans"]) == 1
        frames = about(new)["edit"]["lead"]
        assert len(soundfile.read(new)[0]) == len(soundfile.read(odd)[0]) + 512 * frames


@pytest.mark.slow
def test_variants(edit, tmp_path):
    """The second variant of a moved word, which is on another tune, from its own account."""
    lyrics = write_lyrics(tmp_path / "new.json", go=("go", 5.2, 5.7))
    second = edit("--lyrics", lyrics, "--batch-infer-num", 2).with_name("edit-2.wav")
    main(["--config", f"{second}.json", "--page", "false", "--out", str(tmp_path / "again.wav")])
    assert (tmp_path / "again.wav").read_bytes() == second.read_bytes()


def test_variations(song, edit):
    """Variation 0 is the tune of before; a whole song varied little is nearer to it than one varied much."""
    songs = {name: edit("--seed", 9, "--variation", name, out=f"{name}.wav") for name in ("0", "0.2", "1")}
    latents = {name: load_file(f"{path}.safetensors")["latents"] for name, path in songs.items()}
    first = load_file(f"{song}.safetensors")["latents"]
    frames = round(8 * 24000 / 512)
    far = {name: (value - first)[:frames].square().mean().item() for name, value in latents.items()}
    assert far["0"] == 0 < far["0.2"] < far["1"]


def test_best_of_a_line(song, edit):
    """Takes of a line alone: one of the takes is the song, and all are the song before elsewhere."""
    best = edit("--line", 2, "--best-of", 2, "--scorer", "test_edit:loud")
    takes = [best.with_name(f"edit-{i}.wav") for i in (1, 2)]
    assert best.read_bytes() in [take.read_bytes() for take in takes]
    for take in takes:
        assert differing(song, take)[0] > 2.8 and differing(song, take)[1] < 4.7


def loud(path, record):
    return float(np.square(soundfile.read(path)[0]).mean())


def test_a_manifests_song(tiny_folder, tmp_path):
    """The latents of a manifest's song lie in a folder of their own."""
    write_lyrics(tmp_path / "words.json")
    (tmp_path / "m.json").write_text(json.dumps([{"id": "a", "lrc_path": "words.json", "duration": 8}]))
    main(["--model", str(tiny_folder), "--manifest", str(tmp_path / "m.json"), "--out-dir",
          str(tmp_path / "out"), "--format", "wav", "--page", "false"])
    song = tmp_path / "out" / "generated" / "a.wav"
    main(["--edit", f"{song}.json", "--line", "2", "--page", "false", "--out", str(tmp_path / "new.wav"),
          "--seed", "2"])
    assert differing(song, tmp_path / "new.wav")[0] > 2.8


def test_a_word_that_moves_begins_as_it_was(song, edit, tmp_path, monkeypatch):
    """It is led towards its latents of before for a while, at its new place; but not on another seed."""
    seen, real = [], sample.sample_windows
    monkeypatch.setattr(sample, "sample_windows", lambda *args: seen.append(args[-1]) or real(*args))
    lyrics = write_lyrics(tmp_path / "new.json", go=("go", 5.2, 5.7))
    for seed in (3, 4):
        edit("--lyrics", lyrics, "--seed", seed, out=f"{seed}.wav")
    old, until = load_file(f"{song}.safetensors")["latents"], seen[0][1][:, 0]
    [held] = (until == songs.splice.MOVED).nonzero().T
    begin = until.tolist().index(0)
    assert held.tolist() == list(range(begin + 3, begin + 26)) and 0 not in until[:begin] and begin > 0
    frames = [round(second * 24000 / 512) for second in (5.5, 6.0)]
    rows = seen[0][0][0, held]
    assert min((rows[0] - row).abs().max() for row in old[frames[0] - 1:frames[0] + 2]) == 0
    assert not (seen[1][1] == songs.splice.MOVED).any()


@pytest.mark.parametrize("args, error", [
    ((), "nothing differs from it; change --lyrics, or say"),
    (("--line", "4"), "--line 4: the song has 3 lines"), (("--line", "0"), "--line 0: the song has 3 lines"),
    (("--span", "3-2"), "--span 3-2: expected seconds of the song, such as"),
    (("--span", "7-9"), "--span 7-9: expected .* 8.00 at most"), (("--span", "x"), "--span x: expected"),
    (("--variation", "0.5"), "leads to the tune of another --seed than 3"),
    (("--variation", "0.5", "--seed", "2", "--best-of", "2"), "leads to the tune of another --seed than 3"),
    (("--variation", "2"), "--variation 2.0: expected 0 to 1"),
    (("--line", "1", "--duration", "7"), "--duration 7.00: an edit may be longer .* expected 8.00"),
    (("--line", "1", "--from", "2"), "--edit .*: edits one whole song; leave out --manifest, --from"),
    (("--style", "male"), "nothing differs from it")])
def test_mistakes(edit, args, error):
    with pytest.raises(UserError, match=error):
        edit(*args)


def without(*keys):
    return lambda account: {key: value for key, value in account.items() if key not in keys}


@pytest.mark.parametrize("change", [
    without("chain"), without("edit"), without("level"), without("seal"),
    lambda account: account | {"chain": "x"}, lambda account: account | {"chain": [["x"]]},
    lambda account: account | {"chain": account["chain"] + account["chain"]},
    lambda account: account | {"level": ["a", "b"]}, lambda account: account | {"style": [1.0]},
    lambda account: account | {"latents": "0"}, lambda account: account | {"edit": {"frames": [[1]]}},
    lambda account: account | {"settings": without("duration")(account["settings"])}])
def test_accounts_that_were_changed(edited_song, tmp_path, change):
    path = tmp_path / "new.wav.json"
    path.write_text(json.dumps(change(about(edited_song))))
    for source in ("--edit", "--config"):
        with pytest.raises(UserError, match="new.wav.json: was changed since it was sung"):
            main([source, str(path), "--line", "1", "--page", "false", "--out", str(tmp_path / "x.wav")])


@pytest.fixture(scope="module")
def edited_song(song):
    new = song.with_name("edited.wav")
    main(["--edit", f"{song}.json", "--line", "2", "--page", "false", "--out", str(new)])
    return new


def test_songs_that_were_changed(song, edited_song, tmp_path):
    """Another song, one that was cut, one in stereo, in place of the account's; new tags are no change."""
    wave, rate = soundfile.read(song)
    for path in song.parent.glob("edited.wav*"):
        shutil.copy(path, tmp_path)
    copy = tmp_path / "edited.wav"
    for other in (wave, wave[:9000], np.stack([wave, wave], 1)):
        soundfile.write(copy, other, rate)
        with pytest.raises(UserError, match="edited.wav: was changed since it was sung; if you move it away"):
            main(["--edit", f"{copy}.json", "--line", "1", "--out", str(tmp_path / "x.wav")])
    assert {path.name for path in tmp_path.iterdir()} == {"edited.wav", "edited.wav.json",
                                                          "edited.wav.safetensors"}
    soundfile.write(copy, soundfile.read(edited_song)[0], rate)
    assert fingerprint(copy) == fingerprint(edited_song) and copy.read_bytes() != edited_song.read_bytes()


def test_an_account_of_before(song, edit, tmp_path):
    """A song from before accounts were sealed, held the level and the latents: it is sung again."""
    shutil.copy(song, tmp_path / "song.wav")
    old = without("seal", "level", "latents", "sound", "repeats", "digest")(about(song))
    (tmp_path / "song.wav.json").write_text(json.dumps(old))
    new = edit("--line", 2, of=tmp_path / "song.wav")
    assert new.read_bytes() == edit("--line", 2, out="other.wav").read_bytes()


def test_what_cannot_be_edited(song, tiny_folder, tmp_path):
    """A song without --edit; lyrics; a part of a song; a song over itself; a song of another model."""
    out = ["--page", "false", "--out", str(tmp_path / "new.wav")]
    with pytest.raises(UserError, match="--line, --span, --variation and --lead need --edit"):
        main(["--model", str(tiny_folder), "--line", "1", *out])
    with pytest.raises(UserError, match="there is no such|No such file"):
        main(["--edit", str(tmp_path / "none.json"), "--line", "1", *out])
    for name in ("words.json", "song.wav"):
        with pytest.raises(UserError, match=f"{name}: expected a song's account, the NAME.json beside it"):
            main(["--edit", str(song.with_name(name)), "--line", "1", *out])
    main(["--config", f"{song}.json", "--from", "1", "--to", "3", "--page", "false", "--out",
          str(tmp_path / "part.wav")])
    with pytest.raises(UserError, match="is a part of a song"):
        main(["--edit", str(tmp_path / "part.wav.json"), "--line", "1", *out])
    with pytest.raises(UserError, match="would overwrite .*song.wav"):
        main(["--edit", f"{song}.json", "--line", "1"])
    with pytest.raises(UserError, match="was sung with other weights and codec"):
        main(["--edit", f"{song}.json", "--line", "1", "--model", "baby", "--style", "alto", *out])


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_preset):
    """Flags of a small random model with an autoencoder in stereo, which computes whole windows of 8.5 s."""
    folder = tmp_path_factory.mktemp("jam")
    codec = CodecConfig("oobleck", sample_rate_hz=24000, hop=512, wave_channels=2, latent_dim=8, width=4,
                        strides=(2, 4, 8, 8), multiples=(1, 2, 2, 4))
    sizes = dataclasses.replace(tiny_preset.model, mel_dim=8, max_frames=400)
    preset = dataclasses.replace(tiny_preset, model=sizes, codec=codec, trim=False, filler="average_sparse",
                                 repeats=False)
    write_model(folder, tiny_preset)                         # for its phonemizer and styles
    (folder / CONFIG).write_text(preset_to_json(preset))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file({f"transformer.{k}": v for k, v in DiT(sizes).state_dict().items()}, folder / WEIGHTS)
        autoencoder = Oobleck(codec)
    weights, (_, names) = autoencoder.state_dict(), next(layouts(autoencoder))
    save_file({name: weights[ours] for name, ours in names.items()}, folder / "vae.safetensors")
    return ["--model", str(folder), "--vae", str(folder / "vae.safetensors"), "--page", "false"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8, 20])
def test_published_models(published, tmp_path, seconds):
    """A song that a window holds, or three, in stereo; its sound depends on its neighbours only."""
    lines = [[(w, a + s, b + s) for w, a, b in line] for s in range(0, seconds - 7, 8) for line in LYRICS]
    lyrics = write_lyrics(tmp_path / "words.json", lines)
    main([*published, "--lyrics", str(lyrics), "--duration", str(seconds), "--out", str(tmp_path / "1.wav")])
    main([*published, "--edit", str(tmp_path / "1.wav.json"), "--line", "2", "--style", "male",
          "--out", str(tmp_path / "2.wav")])
    first, end = differing(tmp_path / "1.wav", tmp_path / "2.wav")
    assert 2.85 < first < 3.05 and 4.45 < end < 4.65
    main(["--config", str(tmp_path / "2.wav.json"), *published, "--out", str(tmp_path / "3.wav")])
    assert (tmp_path / "3.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()
    main([*published, "--edit", str(tmp_path / "1.wav.json"), "--seed", "4", "--variation", "0.5",
          "--out", str(tmp_path / "4.wav")])
    assert differing(tmp_path / "1.wav", tmp_path / "4.wav")[0] < 0.1


# What differs

def lyrics_of(*words):
    return Lyrics((Line(tuple(Word(text, *times, phoneme=text) for text, *times in words)),))


OLD = lyrics_of(("a", 0, 1), ("b", 1, 2), ("c", 2, 3))


@pytest.mark.parametrize("new, spans, moved, told", [
    ([("a", 0, 1), ("b", 1, 2), ("c", 2, 3)], [], [], []),
    ([("a", 0, 1.009), ("b", 1.009, 2), ("c", 2, 3)], [], [], []),           # of a file with hundredths
    ([("a", 0, 1), ("x", 1, 2), ("c", 2, 3)], [(1, 2), (1, 2)], [], ['"x" for "b"']),
    ([("a", 0, 1), ("c", 2, 3)], [(1, 2)], [], ['without "b"']),
    ([("a", 0, 1), ("b", 1, 2), ("c", 2, 3), ("d", 3, 4)], [(3, 4)], [], ['with "d"']),
    ([("a", 0, 1), ("b", 1.2, 2), ("c", 2, 3)], [(1, 2), (1.2, 2)], [(1, 2, 1.2, 2)],
     ['"b" +0.20 s, -0.20 s long']),
    ([("a", 0, 1), ("b", 1, 1.5), ("c", 2, 3)], [(1, 2), (1, 1.5)], [(1, 2, 1, 1.5)],
     ['"b" +0.00 s, -0.50 s long'])])
def test_changes(new, spans, moved, told):
    found = changes(OLD, lyrics_of(*new))
    times = [(was.start, was.end, now.start, now.end) for was, now in found[1]]
    assert [sorted(found[0]), times, found[2]] == [sorted(spans), moved, told]


def test_changes_of_sounds():
    """Another pronunciation, or a sound at another time, of a word that is written the same."""
    [line], word = OLD.lines, OLD.words[0]
    for other in (dataclasses.replace(word, phoneme="e"),
                  dataclasses.replace(word, phones=(Part("a", 0, 0.5), Part("b", 0.5, 1)))):
        spans, _, _ = changes(OLD, Lyrics((dataclasses.replace(line, words=(other, *line.words[1:])),)))
        assert spans == [(0, 1), (0, 1)]


SPAN = st.tuples(st.integers(0, 4000), st.integers(1, 300)).map(lambda s: (s[0], sum(s)))


def test_frames_of_a_word_at_other_times():
    """Consonants that are drawn out like vowels would be heard at the wrong time."""
    was, now = Word("sing", 0.3, 1.3, phoneme="sɪŋ"), Word("sing", 2.0, 3.8, phoneme="sɪŋ")
    rows = frames_before(was, now, 100, "sung").tolist()
    assert len(rows) == 180 and rows == sorted(rows)
    assert rows[:12] == [*range(30, 42)] and rows[-9:] == [*range(121, 130)]        # 0.12 and 0.09 s
    even = frames_before(was, now, 100, "average_sparse").tolist()
    timed = dataclasses.replace(was, phones=(Part("s", 0.3, 0.9), Part("ɪ", 0.9, 1.3)))
    assert frames_before(timed, now, 100, "sung").tolist() == even
    assert even == [30 + int((i + 0.5) / 1.8) for i in range(180)]


@given(st.lists(SPAN, min_size=1), st.booleans(), st.integers(0, 3))
def test_stretches(spans, trim, styles):
    """A span that no stretch holds, or two do; a stretch that is longer than it needs to be."""
    preset = dataclasses.replace(PRESETS["baby"], trim=trim)
    spans, frames = joined(spans, 5), 4300
    vectors = [torch.tensor([float(i % (styles + 1))]) for i in range(len(spans))]
    found = stretches_of(spans, vectors, frames, preset)
    assert [span for stretch in found for span in stretch.spans] == spans
    for stretch in found:
        assert 0 <= stretch.first <= stretch.spans[0][0] and stretch.spans[-1][1] <= stretch.end <= frames
        own = max(b for _, b in stretch.spans) - min(a for a, _ in stretch.spans)
        assert stretch.end - stretch.first <= max(preset.model.max_frames, own + 2 * 235)
        assert trim or stretch.end - stretch.first >= min(preset.model.max_frames, frames)


def test_noise(tiny_preset):
    """Noise of another seed is the spans' alone, halfway it is both; a song that begins earlier keeps it."""
    chain = [{"request": {"seed": 3}, "repeats": []}]
    base = Edit(Before({}, *3 * [torch.zeros(0)]), 0, 90, [(10, 20)], [], [], 0.5, False, [])
    noise, old, other = (noise_of(seed, 100, tiny_preset.model) for seed in (3, 3, 4))
    noise = noise_after(chain, base, 4, 100, tiny_preset)
    assert torch.equal(noise[:, 20:], old[:, 20:]) and torch.equal(noise[:, :10], old[:, :10])
    assert torch.allclose(noise[:, 10:20], (old[:, 10:20] + other[:, 10:20]) / 2 ** 0.5, atol=1e-6)
    longer = noise_after(chain, base._replace(lead=7), 3, 100, tiny_preset)
    assert torch.equal(longer[:, 7:], old[:, :93]) and not torch.equal(longer[:, :7], old[:, :7])
