"""lyrics/align.py: words are found where a recording has them, also in chunks; every mistake is one line.

The stand-in for the speech model hears tones, one for each letter; recordings spell words with them, at known
times, over noise. No published weights are used.
"""

import urllib.error
import warnings

import pytest
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

from config import UserError
from lyrics import align as align_module
from lyrics.align import LISTENERS, SEPARATOR, AlignSettings, Span
from lyrics.align import align, emissions, fetch, guess, hold, separate
from lyrics.pronounce import words_in
from lyrics.timing import Line, Lyrics, Part, Word

RATE = 16000
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
LETTER_S, GAP_S = 0.08, 0.02             # of a tone; of the silence behind it
FRAME_S = 0.02
CPU = torch.device("cpu")


def pitch(letter):
    return 400 + 120 * LETTERS.index(letter)


class Ear(nn.Module):
    """Tones -> log probabilities, 50 frames per second less one, as the published models' geometry has it.

    How loud a tone must be depends on the second around it. A peaky ear hears only its beginning. Where its
    labels have a bar, it hears this for 0.1 s behind tones.
    """

    def __init__(self, bundle):
        super().__init__()
        self.bundle, self.normalize_waveform = bundle, True
        t = torch.arange(400) / RATE
        angle = 2 * torch.pi * torch.tensor([pitch(c) for c in LETTERS])[:, None] * t   # (27, 400)
        self.kernels = (torch.cat([angle.cos(), angle.sin()]) * torch.hann_window(400))[:, None]

    def forward(self, wave):
        self.bundle.heard.append(wave.shape[1])
        if self.normalize_waveform:
            wave = F.layer_norm(wave, wave.shape)
        power = F.conv1d(wave[:, None], self.kernels, stride=320).square()              # (1, 54, T)
        power = power[:, :27] + power[:, 27:]
        whole = power.sum(1, keepdim=True)
        share = power / (whole + 0.3 * F.avg_pool1d(whole, 51, 1, 25) + 1e-9)
        if self.bundle.peaky:
            share = (share - F.pad(share, (2, 0))[:, :, :-2]).clamp_min(0)
        out = torch.zeros(1, share.shape[2], len(self.bundle.labels))
        out[:, :, 0] = 8
        for i, letter in enumerate(LETTERS):
            at = [label.lower() for label in self.bundle.labels].index(letter)
            out[:, :, at] = 20 * share[:, i]
        if "|" in self.bundle.labels:
            out[:, :, 1] = 20 * F.max_pool1d(F.pad(share.sum(1), (5, 0)), 6, 1) - 20 * share.sum(1)
        return out, None


class Bundle:
    """A stand-in for one of torchaudio.pipelines; `heard` are the samples of each chunk so far."""
    sample_rate = RATE

    def __init__(self, labels, peaky=False):
        self.labels, self.peaky, self.heard = labels, peaky, []

    def get_labels(self):
        return tuple(self.labels)

    def get_model(self, dl_kwargs):
        assert dl_kwargs == {"weights_only": True}
        return Ear(self)


class LeftIsTheSinger(nn.Module):
    """A stand-in for the separator."""
    sources = ["drums", "vocals", "other"]

    def forward(self, wave):
        left, right = wave.unbind(1)
        return torch.stack([right, left, right], 1)[:, :, None].expand(-1, -1, 2, -1)


class SeparatorBundle:
    sample_rate = 44100

    def get_model(self):
        return LeftIsTheSinger()


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path):
    """The stand-ins in the place of torchaudio's; an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    bundles = {"mms": Bundle("-aienoutsrmkldghybpwcvjzf'qx*"),
               "wav2vec2": Bundle("-|ETAONIHSRDLUMWCFGYPBVK'XJQZ")}
    for name, bundle in bundles.items():
        monkeypatch.setattr(torchaudio.pipelines, LISTENERS[name].name, bundle)
    monkeypatch.setattr(torchaudio.pipelines, SEPARATOR.name, SeparatorBundle())
    return bundles


def spell(plan, seconds, rate=RATE, held=LETTER_S):
    """A recording (N,) that spells (text, start) after (text, start); and each one's true start and end.

    The last letter of each lasts `held` seconds.
    """
    rng = torch.Generator().manual_seed(0)
    wave, truth = 0.003 * torch.randn(round(seconds * rate), generator=rng), []
    for text, start in plan:
        at = start
        for i, letter in enumerate(text):
            size = held if i == len(text) - 1 else LETTER_S
            t = torch.arange(round(size * rate)) / rate
            first = round(at * rate)
            wave[first:first + len(t)] += 0.3 * torch.sin(2 * torch.pi * pitch(letter) * t)
            at += size + GAP_S
        truth.append((start, at - GAP_S))
    return wave, truth


def song(*lines):
    """Lyrics of texts, or of (text, start) for lines with times; numbered as in a file with blank lines."""
    texts = [(line, None) if isinstance(line, str) else line for line in lines]
    return Lyrics(tuple(Line(words_in(text), start=start, number=2 * i + 1)
                        for i, (text, start) in enumerate(texts)))


def found(tmp_path, plan, seconds, lyrics, held=LETTER_S, **settings):
    """What `align` finds in a spelled recording, and the truth."""
    wave, truth = spell(plan, seconds, held=held)
    soundfile.write(tmp_path / "song.wav", wave.numpy(), RATE)
    settings = {"separate": False, "device": "cpu"} | settings
    return align(tmp_path / "song.wav", lyrics, AlignSettings(**settings)), truth


def errors(words, truth):
    """The largest error of starts, and of ends, in frames."""
    assert len(words) == len(truth)
    return [round(max(abs(getattr(word, side) - times[i]) for word, times in zip(words, truth)) / FRAME_S, 6)
            for i, side in enumerate(("start", "end"))]


PLAN = [("good", 1.0), ("morning", 1.7), ("sun", 2.5), ("don't", 4.0), ("go", 4.7), ("away", 9.0)]


@pytest.mark.parametrize("model", LISTENERS)
@pytest.mark.parametrize("peaky", [False, True])
def test_words_are_found_where_they_are(tmp_path, models, model, peaky, capsys):
    """Frames counted from a window's length are 0.07 % too long; a star that costs nothing eats onsets."""
    models[model].peaky = peaky
    lyrics, truth = found(tmp_path, PLAN, 11.0, song("Good mo~rning, sun", "don’t go away~~"), model=model)
    assert [word.word for word in lyrics.words] == ["Good", "mo~rning,", "sun", "don’t", "go", "away~~"]
    start, end = errors(lyrics.words, truth)
    assert start <= 1.0 and end <= 2.0
    assert [(line.start, line.end) for line in lyrics.lines] == [
        (line.words[0].start, line.words[-1].end) for line in lyrics.lines]
    assert "warning" not in capsys.readouterr().err


def test_a_held_note_lasts(tmp_path, models):
    """The ear hears a sound begin, not go on: a word held for 1.5 s would end after 0.1 s."""
    models["mms"].peaky = True
    plan = [("love", 1.0), ("me", 4.0), ("do", 6.0)]
    lyrics, truth = found(tmp_path, plan, 9.0, song("love me do"), held=1.5)
    start, end = errors(lyrics.words, truth)
    assert start <= 1.0 and end <= 2.0


def test_hold_ends_in_time():
    """A held word would run into the next one, into one that cannot be read, or through the accompaniment."""
    power = torch.ones(100)
    power[60:70] = 1e-3
    spans = [Span(0, 5, 1.0), Span(20, 25, 1.0), None, Span(50, 55, 1.0), Span(75, 78, 1.0)]
    assert [span and span.end for span in hold(spans, power, 15)] == [20, 25, None, 60, 93]
    assert hold([Span(97, 100, 1.0)], power, 15) == [Span(97, 100, 1.0)]


@pytest.mark.slow
def test_numbers_are_read_out(tmp_path):
    """A number would count as unreadable, and its letters would be laid on nothing."""
    plan = [("love", 1.0), ("twentyfour", 1.7), ("hours", 3.0)]
    lyrics, truth = found(tmp_path, plan, 5.0, song("love 24 hours"))
    assert errors(lyrics.words, truth)[0] <= 1.0 and lyrics.words[1].word == "24"


def test_unreadable_words(tmp_path, capsys):
    """They would stop everything, or shift the words around them; nobody would know of the guesses."""
    plan = [("hello", 1.0), ("world", 7.0), ("again", 9.0), ("bye", 12.0), ("zqxj" * 12, 1.6)]
    lyrics, truth = found(tmp_path, plan, 14.0, song("hello мир ☃ world", "♥ again", "bye 日本"))
    read = [word for word in lyrics.words if word.word.isascii()]
    assert errors(read, truth[:4])[0] <= 1.0
    inner, heart, last = lyrics.words[1:3], lyrics.words[4], lyrics.words[7]
    assert inner[0].start == pytest.approx(truth[0][1], abs=0.05) and inner[0].end == inner[1].start
    assert inner[1].end - inner[0].start == pytest.approx(2 * 0.4)
    assert heart.end == lyrics.words[5].start and heart.start == pytest.approx(heart.end - 0.4)
    assert last.start == lyrics.words[6].end and last.end == pytest.approx(last.start + 0.4)
    assert capsys.readouterr().err.endswith(
        'song.wav: 4 of 8 words cannot be read, their times are guessed: line 1, word 2 "мир"; line 1, '
        'word 3 "☃"; line 3, word 5 "♥"; line 5, word 8 "日本"\n')


def test_guesses_share_a_gap():
    """Words without a gap for them would get times outside of it, or overlap the next word."""
    one, two = Span(10, 20, 1.0), Span(26, 30, 1.0)
    assert guess([one, None, None, None, two], [0] * 5, 50, 20) == [(10, 20), (20, 22), (22, 24), (24, 26),
                                                                   (26, 30)]
    assert guess([one, None], [0, 1], 50, 5) == [(10, 20), (20, 25)]
    assert guess([None, one, None], [0, 1, 2], 24, 20) == [(0, 10), (10, 20), (20, 24)]
    assert guess([two, None, one], [0, 0, 0], 50, 20) == [(26, 30), (30, 30), (10, 20)]      # a backing voice


def test_repeated_words_and_what_is_beside_the_lyrics(tmp_path, capsys):
    """Equal lines would be confused, ad-libs taken for the lyrics' letters, pauses for parts of words."""
    plan = [(word, start) for at in (1.0, 12.0, 15.0) for word, start in (("la", at), ("la", at + 0.3),
                                                                          ("land", at + 0.6))]
    adlibs = [("yeahyeahlaugh", 3.0), ("hohoand", 6.0), ("bandstand", 18.0)]
    wave, truth = spell(plan + adlibs, 21.0)
    soundfile.write(tmp_path / "song.wav", wave.numpy(), RATE)
    settings = AlignSettings(separate=False, device="cpu")
    lyrics = align(tmp_path / "song.wav", song(*["La la land"] * 3), settings)
    assert errors(lyrics.words, truth[:9])[0] <= 1.0
    assert "warning" not in capsys.readouterr().err


def test_doubtful_words_are_listed(tmp_path, capsys):
    """A verse that is not in the recording would get times without a word."""
    found(tmp_path, PLAN[:3], 5.0, song("good morning", "quick", "sun"))
    err = capsys.readouterr().err
    assert 'song.wav: 1 of 4 words were hardly heard (below 0.2): line 3, word 3 "quick" (0.0' in err


def test_lines_with_times_are_looked_for_there(tmp_path):
    """A chorus that the lyrics have once would be found where it is sung first; old syllables would stay."""
    plan = [("oh", 1.0), ("love", 1.4), ("oh", 10.0), ("love", 10.4), ("me", 14.0), ("you", 15.0)]
    lyrics = song(("oh love", 10.6), ("", 12.0), ("me", 13.3), "you")
    syllables = Word("oh", 0.1, 0.2, syllables=(Part("oh", 0.1, 0.2),))
    first = Line((syllables, Word("love")), start=10.6, number=1)
    lyrics = Lyrics((first, *lyrics.lines[1:]), "a title", "a name")
    aligned, truth = found(tmp_path, plan, 17.0, lyrics)
    assert errors(aligned.words, truth[2:])[0] <= 1.0
    assert (aligned.title, aligned.artist, aligned.lines[1]) == ("a title", "a name", lyrics.lines[1])


def test_lines_stay_in_order(tmp_path):
    """Equal lines whose times are near each other would both be found at the first one."""
    plan = [("oh", 2.0), ("love", 2.3), ("oh", 3.0), ("love", 3.3), ("oh", 4.0), ("love", 4.3)]
    aligned, truth = found(tmp_path, plan, 7.0, song(("oh love", 2.1), ("oh love", 2.8), ("oh love", 3.2)))
    assert errors(aligned.words, truth)[0] <= 1.0


def test_every_line_has_its_own_time(tmp_path):
    """A line would be found where another one may be: here its words are sung better, but too late."""
    plan = [("oh", 2.0), ("lov", 2.3), ("me", 9.0), ("oh", 8.2), ("love", 8.5)]
    aligned, truth = found(tmp_path, plan, 11.0, song(("oh love", 2.0), ("me", 7.5)), margin=0.5)
    assert errors(aligned.words, truth[:3])[0] <= 1.0


def test_backing_voices_may_overlap(tmp_path):
    """A backing line would be looked for behind the lead that it is sung beside, or cut it off."""
    plan = [("love", 2.0), ("stays", 5.0), ("ooh", 3.5), ("wow", 7.5), ("home", 6.0)]
    aligned, truth = found(tmp_path, plan, 10.0, Lyrics((
        Line(words_in("love stays"), 2.0), Line(words_in("ooh wow"), 3.5, 8.0, backing=True),
        Line(words_in("home"), 5.8))))
    assert errors(aligned.words, truth)[0] <= 1.0


def test_no_word_ends_behind_the_recording(tmp_path):
    """The last frame may be cut off; a song sung with these times would be longer than it."""
    aligned, _ = found(tmp_path, [("go", 1.0)], 1.253, song("go ☃"))
    assert aligned.words[1].end == pytest.approx(1.253, abs=1e-9)


# Long recordings

LONG = [(word, 2.0 + 1.5 * i) for i, word in enumerate(["sing", "me", "home", "tonight"] * 49)]


def test_long_recordings_are_heard_in_chunks(tmp_path, models, monkeypatch):
    """Borders of chunks would cut letters and shift all times behind them; memory would grow with length."""
    lyrics = song(*["sing me home tonight"] * 49)
    chunked, truth = found(tmp_path, LONG, 297.3, lyrics)
    assert max(models["mms"].heard) == 30 * RATE and len(models["mms"].heard) == 15
    assert errors(chunked.words, truth)[0] <= 1.0
    monkeypatch.setattr(align_module, "CHUNK_S", 1000)
    whole, _ = found(tmp_path, LONG, 297.3, lyrics)
    assert max(models["mms"].heard) == 298 * RATE
    assert errors(chunked.words, [(word.start, word.end) for word in whole.words]) == [0, 0]


def ear():
    model = Ear(Bundle("-aienoutsrmkldghybpwcvjzf'qx*"))
    model.normalize_waveform = False
    return model


@pytest.mark.parametrize("seconds", [29.5, 30.0, 30.1, 41.0, 65.0])
def test_chunks_hear_what_the_whole_hears(monkeypatch, seconds):
    """Without context, what the ear needs around a frame ends at the chunk; the last one is put wrongly."""
    wave, _ = spell([(word, start) for word, start in LONG if start < seconds - 2], seconds)
    chunked, per_s = emissions(wave, RATE, ear(), CPU)
    monkeypatch.setattr(align_module, "CHUNK_S", 1000)
    whole, _ = emissions(wave, RATE, ear(), CPU)
    assert per_s == 50 and chunked.shape == whole.shape
    assert seconds * 50 - 1 <= len(whole) <= seconds * 50
    assert (chunked - whole).abs().max() < 1e-3


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5, 3.0, 33.3])
def test_frames_of_the_published_geometry(seconds):
    """The models lose a frame at the end: counted with it, short recordings have another frame rate."""
    layers = [(8, k, s) for k, s in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchaudio.models.wav2vec2_model(
            "layer_norm", layers, True, 16, 0.0, 8, 2, 1, 2, 0.0, 16, 0.0, 0.0, True, 0.0, 5).eval()
    heard, per_s = emissions(spell([], seconds)[0], RATE, model, CPU)
    assert per_s == 50 and len(heard) in (round(seconds * 50), round(seconds * 50) - 1)


def test_quiet_passages_stay_quiet():
    """A model that turns each chunk up to the same level hears letters in the noise of a pause."""
    model = fetch(LISTENERS["mms"], CPU, False)
    heard = []
    model.register_forward_pre_hook(lambda _, args: heard.append(args[0].std().item()))
    assert not model.normalize_waveform
    emissions(spell([("la", 2.0 + 0.3 * i) for i in range(40)], 65.0)[0], RATE, model, CPU)
    assert heard[0] > 1 > 0.1 > heard[-1]


# The voice

class Blur(nn.Module):
    """A separator whose vocals are half of the mix, smoothed: wrong near the edges of what it gets."""
    sources = ["drums", "vocals"]

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, wave):
        self.sizes.append(wave.shape[2])
        return torch.stack([wave, 0.5 * F.avg_pool1d(wave, 9, 1, 4)], 1)


@pytest.mark.parametrize("samples", [1, 50, 1000, 1001, 1800, 7777])
def test_pieces_fade_into_each_other(samples):
    """A seam, a gap, another loudness or another source than the voice; pieces that grow with the mix."""
    wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    model = Blur()
    voice = separate(wave, model, 1000, 200, CPU)
    whole = 0.5 * F.avg_pool1d(F.pad(wave, (4, 4)), 9, 1).mean(0)
    assert voice.shape == (samples,) and set(model.sizes) == {1000}
    assert len(model.sizes) == max(1, -(-(samples - 200) // 800))
    # Near the edge of a piece, 4 samples see too little; they count for a fiftieth there.
    assert (voice - whole).abs().max() < 0.02


def test_the_voice_alone_is_listened_to(tmp_path, capsys):
    """The separator would get mono or another rate, or the mix would be listened to all the same."""
    wave, truth = spell([("good", 1.0), ("night", 2.0)], 4.0, 44100)
    band, _ = spell([("q", 0.1 * i) for i in range(38)], 4.0, 44100)
    path, lyrics = tmp_path / "mix.flac", song("good night")
    soundfile.write(path, torch.stack([wave, 2 * band], 1).numpy(), 44100)
    voice = align(path, lyrics, AlignSettings(device="cpu"))
    assert errors(voice.words, truth)[0] <= 1.0 and "hardly heard" not in capsys.readouterr().err
    align(path, lyrics, AlignSettings(device="cpu", separate=False))
    assert "2 of 2 words were hardly heard" in capsys.readouterr().err
    for channels in (1, 3):                                  # LeftIsTheSinger gets their mean, twice
        soundfile.write(path, wave.expand(channels, -1).T.numpy(), 44100)
        assert errors(align(path, lyrics, AlignSettings(device="cpu")).words, truth)[0] <= 1.0
    soundfile.write(path, torch.stack([torch.zeros_like(band), band], 1).numpy(), 44100)
    with pytest.raises(UserError, match=r"mix.flac: no voice was found in it; --separate false listens"):
        align(path, lyrics, AlignSettings(device="cpu"))


# Mistakes

@pytest.mark.parametrize("lyrics, settings, error", [
    (song(), {}, "the lyrics have no word that can be read"),
    (song("日本 ☃"), {}, "the lyrics have no word that can be read"),
    (song("a" * 25), {}, "song.wav: is 1.00 s long; its words need 1.02 s or more$"),
    (song(("a", 0.2), "b", ("c", 1.0)), {},
     r'song.wav: line 5, word 3 "c": its line begins at 1.00 s; the recording ends at 1.00 s$'),
    (song("a"), {"model": "hdemucs"}, "--model hdemucs: expected one of mms, wav2vec2"),
    (song("a"), {"margin": -1.0}, "--margin -1.0: expected 0 or more"),
    (song("a"), {"device": "abacus"}, "--device abacus: "),
])
def test_mistakes(tmp_path, lyrics, settings, error):
    """torchaudio's own words for them name a C++ file; a repeated letter needs a frame more."""
    with pytest.raises(UserError, match=error):
        found(tmp_path, [("a", 0.2)], 1.0, lyrics, **settings)


def test_broken_recordings(tmp_path):
    """Silence would be divided by, or aligned; before that, a gigabyte would be fetched."""
    path = tmp_path / "song.wav"
    with pytest.raises(UserError, match="song.wav: there is no such file"):
        align(path, song("a"), AlignSettings(offline=True))
    for level in (0.0, 0.5):
        soundfile.write(path, torch.full((RATE,), level).numpy(), RATE)
        with pytest.raises(UserError, match="song.wav: is silent"):
            align(path, song("a"), AlignSettings(offline=True))


# Weights

@pytest.mark.parametrize("source", [*LISTENERS.values(), SEPARATOR], ids=lambda source: source.name)
def test_fetching(source, tmp_path, monkeypatch, capsys):
    """A download without a word of source and licence; offline, broken and failed ones as a stack trace."""
    assert source.path.parent == tmp_path / "torch" / "hub" / source.folder
    with pytest.raises(UserError) as offline:
        fetch(source, CPU, True)
    assert str(offline.value) == (f"{source.name}: {source.path} is missing and --offline forbids to fetch "
                                  f"it; put {source.url} there")
    fetch(source, CPU, False)
    assert capsys.readouterr().err == (f"fetching {source.name} from {source.url} to {source.path}, "
                                       f"{source.size}; licence: {source.licence}\n")

    def fails(**options):
        raise urllib.error.URLError("no route")
    monkeypatch.setattr(source.bundle, "get_model", fails)
    with pytest.raises(UserError) as failed:
        fetch(source, CPU, False)
    assert str(failed.value) == (f"{source.name} ({source.url}): <urlopen error no route>; or put it at "
                                 f"{source.path}")
    source.path.parent.mkdir(parents=True)
    source.path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=f"{source.path}: corrupt, or no weights of {source.name}; delete it"):
        fetch(source, CPU, True)
    assert not capsys.readouterr().err.count("\n") > 1


def test_sources_are_torchaudios(monkeypatch):
    """Another address or file than torchaudio's own: --offline would look in the wrong place."""
    monkeypatch.undo()
    asked = []

    def record(url, *args, **options):
        asked.append((url, str(args[0]) if args else None, options))
        raise OSError("recorded")
    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", record)
    monkeypatch.setattr("torchaudio.utils.download.download_url_to_file", record)
    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils._get_model", lambda *args: None)
    for source in (*LISTENERS.values(), SEPARATOR):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(OSError, match="recorded"):
                source.bundle.get_model(**source.options)
        url, path, options = asked[-1]
        assert url == source.url and path in (None, str(source.path))
        assert path or options == {"weights_only": True} and source.folder == "checkpoints"
