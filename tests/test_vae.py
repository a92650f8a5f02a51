"""vae.py: Oobleck is the published autoencoder, from every layout of its weights; the cuts between chunks are
inaudible.
"""

import dataclasses
import itertools
import json
import math
import pickle
import zipfile

import golden as names
import pytest
import torch
from safetensors.torch import save_file
from standin_vae import Fitting, Foreign, Hostile, Wrapped, save_script
from torch import nn

import vae
from config import PRESETS, CodecConfig, SampleConfig, TrainConfig, UserError
from sung import SungCodec
from support.cli import parse
from tools.prepare import PrepareConfig
from vae import Oobleck, OobleckCodec, Scripted, chunks, layouts, load_oobleck, make_codec, silence_of

CONFIG = PRESETS["baby"].codec
FULL = PRESETS["jam-0.5"].codec
TINY = CodecConfig("oobleck", sample_rate_hz=44100, hop=32, wave_channels=2, latent_dim=4, width=8,
                   strides=(2, 4, 4), multiples=(1, 2, 4))
ODD = dataclasses.replace(TINY, hop=15, strides=(3, 5), multiples=(1, 2))
FLAT = dataclasses.replace(TINY, hop=2, strides=(2,), multiples=(1,))
LAYOUTS = list(itertools.product(("weight_g", "parametrizations.weight.original0", "weight"),
                                 ("diffusers", "stable-audio-tools"), vae.PREFIXES))


# Oobleck, the network

def error(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def latents(frames: int, songs: int = 1, config: CodecConfig = TINY) -> torch.Tensor:
    """(B, T, C)"""
    return torch.randn(songs, frames, config.latent_dim, generator=torch.Generator().manual_seed(frames))


def random_model(config: CodecConfig = TINY) -> Oobleck:
    """An untrained network whose every tensor matters, at about unit gain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Oobleck(config)
        for name, tensor in model.named_parameters():
            torch.nn.init.normal_(tensor, std=0.3) if name.endswith(("alpha", "beta")) else None
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize("folded", [False, True])
def test_golden(folded, golden):
    """Another formula than the original's: Snake, dilations, paddings, norms, or softplus not just once."""
    meta, io = golden("f_vae_meta.json"), golden("f_vae_io.safetensors")
    original = names.vae(meta["config"], golden("f_vae_tiny_weights.safetensors"))
    if folded:
        original.fold()
    mean, std = original.encode(io["audio"])
    assert error(mean, io["mean"]) < 1e-6 and error(std, io["std"]) < 1e-6
    assert error(original.decode(io["latent"]), io["decoded"]) < 1e-5


def test_published_names_and_shapes(golden):
    """A full-size file that does not load, seen before its gigabyte is downloaded."""
    table = golden("f_vae_key_map.json")["table"]
    with torch.device("meta"):
        empty = Oobleck(FULL)
    sizes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    maps = [names for _, names in layouts(empty) if any(k.endswith("weight_g") for k in names)]
    for found, kind, shape in zip(maps, ("diffusers", "stable_audio_tools"), ("shape", "sat_shape"),
                                  strict=True):
        assert found.keys() == {row[kind] for row in table} and len(found) == 365
        assert set(found.values()) == sizes.keys()
        for row in table:
            ours = sizes[found[row[kind]]]
            assert ours == tuple(row[shape]) or ours == (1, *row[shape], 1)    # alpha and beta
    diffusers, other = maps                                  # the same tensor under both names
    assert all(diffusers[row["diffusers"]] == other[row["stable_audio_tools"]] for row in table)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("decoder_channels", [4, 6, 10])
def test_equals_diffusers(decoder_channels, tmp_path):
    """A fact that the golden configuration cannot show, such as a decoder of another width than the encoder;
    weights that its own save_pretrained writes, or the same in any other layout.
    """
    from diffusers import AutoencoderOobleck
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = AutoencoderOobleck(encoder_hidden_size=6, downsampling_ratios=[2, 6, 4],
                                    channel_multiples=[1, 3, 5], decoder_channels=decoder_channels,
                                    decoder_input_channels=3, audio_channels=1)
        for name, tensor in theirs.named_parameters():
            torch.nn.init.normal_(tensor, std=0.3) if name.endswith(("alpha", "beta")) else None
    theirs.eval().requires_grad_(False).save_pretrained(tmp_path)
    config = CodecConfig("oobleck", sample_rate_hz=44100, hop=48, latent_dim=3, width=6, strides=(2, 6, 4),
                         multiples=(1, 3, 5), decoder_width=decoder_channels)
    ours = names.vae(dict(theirs.config), theirs.state_dict())
    for i, layout in enumerate(LAYOUTS):
        save_file(as_file(ours, config, *layout), tmp_path / f"{i}.safetensors")
    latent = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(2))
    wave = theirs.decode(latent).sample
    want = theirs.encode(wave).latent_dist
    files = list(tmp_path.glob("*.safetensors"))
    assert wave.abs().max() > 1e-3 and len(files) == 1 + len(LAYOUTS)
    for model in (ours, *(load_oobleck(path, config) for path in files)):
        assert error(model.decode(latent), wave) < 1e-5 * wave.abs().max()
        mean, std = model.encode(wave)
        assert error(mean, want.mean) < 1e-5 and error(std, want.std) < 1e-5


def test_fold(model):
    """Folding over the wrong dimension, of the transposed convolutions above all; folding twice."""
    folded = random_model().fold().fold()
    x = latents(20).transpose(1, 2)
    want = model.decode(x)
    assert error(folded.decode(x), want) < 1e-6 * want.abs().max()
    assert not any("parametrizations" in name for name in folded.state_dict())


@pytest.mark.parametrize("config", [TINY, ODD, FLAT], ids=["tiny", "odd", "flat"])
def test_reach(config):
    """Cuts that are heard, or decoding of more than is needed: the reach is exact, on its farther side."""
    net = random_model(config).double()
    reach = OobleckCodec(config, net).reach
    frames, at = 2 * reach + 5, reach + 2
    x = latents(frames, config=config).double().transpose(1, 2)
    other = x.clone()
    other[0, :, at] += 10
    moved = (net.decode(other) - net.decode(x)).abs().amax(1)[0].nonzero().flatten() // config.hop - at
    assert max(-moved.min().item(), moved.max().item()) == reach
    wave = net.decode(x)
    assert wave.shape == (1, 2, frames * config.hop)
    other = wave.clone()
    other[..., at * config.hop:(at + 1) * config.hop] += 10
    moved = (net.encode(other)[0] - net.encode(wave)[0]).abs().amax(1)[0].nonzero().flatten() - at
    assert max(-moved.min().item(), moved.max().item()) <= reach


# Oobleck, in chunks

def test_chunks_are_the_published_ones(golden):
    published = golden("g_chunked_decode.json")
    for total, spans in published["totals"].items():
        assert chunks(int(total), published["chunk"], published["overlap"]) == [
            (s["chunk_start"], s["chunk_end"], *s["kept_output"]) for s in spans]


@pytest.mark.parametrize("overlap", [0, 2, 32, 64])
def test_chunks_cover_every_frame_once(overlap):
    """A gap or a repetition at a length that the golden values do not have."""
    for total in range(1, 400):
        spans = chunks(total, 128, overlap)
        assert [f for _, _, a, b in spans for f in range(a, b)] == list(range(total))
        assert all(start <= a < b <= end and end - start == min(total, 128) for start, end, a, b in spans)
        assert all(a - start >= overlap // 2 or a == 0 for start, _, a, _ in spans)
        assert all(end - b >= overlap // 2 or b == total for _, end, _, b in spans)


def seam(monkeypatch, model, overlap: int, frames: int = 300) -> tuple[float, float]:
    """Difference of decoding in chunks and at once, relative to the loudest sample; likewise of encoding."""
    codec = OobleckCodec(TINY, model)
    monkeypatch.setattr(vae, "OVERLAP", overlap)
    z = latents(frames)
    whole = model.decode(z.transpose(1, 2))
    posterior = torch.cat(model.encode(whole), 1)
    return (error(codec.decode(z), whole) / whole.abs().max().item(),
            error(codec.posterior(whole), posterior) / posterior.abs().max().item())


def test_cuts_are_not_heard(model, monkeypatch):
    """A click each two seconds; where the overlap is too small for the network it has to grow."""
    assert OobleckCodec(TINY, model).reach == 18 and OobleckCodec(FULL, nn.Module()).reach == 10
    assert max(seam(monkeypatch, model, 32)) < 2e-6          # measured: 5e-7
    monkeypatch.setattr(OobleckCodec, "reach", 0)            # so that the overlap stays as it is
    assert min(seam(monkeypatch, model, 4)) > 1e-2           # measured: 0.3 decoded, 0.07 encoded
    assert seam(monkeypatch, model, 32)[0] > 4e-6            # measured: 1e-5


@pytest.mark.parametrize("part", [(0, 20), (150, 170), (290, 300)])
def test_a_part_that_is_decoded_again(model, part):
    """Fewer neighbours than a frame's sound depends on; a part at the song's end."""
    codec, z = OobleckCodec(TINY, model), latents(300)
    wave, hz = codec.decode_again(z, part, [part], codec.pitch(z))
    whole = codec.decode(z)[..., part[0] * TINY.hop:part[1] * TINY.hop]
    assert error(wave, whole) < 2e-6 * whole.abs().max() and hz.shape == (1, 0)


class Recorder(nn.Module):
    """Decodes each frame to its first channel, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def decode(self, latent):
        self.given.append(tuple(latent.shape))
        return latent[:, :2].repeat_interleave(TINY.hop, 2)


@pytest.mark.parametrize("rows", [1, 3])
def test_memory_does_not_grow_with_the_song(rows):
    """A long song, or many, that fill the device; chunks of several lengths, or pasted in another's place."""
    for frames, songs in [(300, 1), (1000, 2), (5000, 1)]:
        recorder, seen = Recorder(), []
        codec = OobleckCodec(TINY, recorder, rows=rows)
        z = latents(frames, songs)
        wave = codec.decode(z, lambda batches, seen=seen: seen.extend(batches) or batches)
        assert {shape[1:] for shape in recorder.given} == {(4, 128)}
        assert max(shape[0] for shape in recorder.given) == rows and len(recorder.given) == len(seen)
        assert torch.equal(wave, z[..., :2].transpose(1, 2).repeat_interleave(TINY.hop, 2))


def test_codec_shapes(model):
    """Another interface than the embedded model's codec has; a song that changes its batch mates."""
    for dtype, limit in [(torch.float32, 1e-6), (torch.bfloat16, 0.1)]:
        codec = OobleckCodec(TINY, random_model().to(dtype), dtype=dtype, rows=2)
        z = latents(130, 3)
        wave = codec.decode(z)
        assert wave.shape == (3, 2, 130 * TINY.hop) and wave.dtype == torch.float32
        assert not wave.is_inference() and not wave.requires_grad
        assert error(codec.decode(z[1:2]), wave[1:2]) < 1e-6
        alone = model.decode(z[2:].transpose(1, 2))
        assert error(wave[2:], alone) < limit * alone.abs().max()
    mean, std = model.encode(wave)
    codec = OobleckCodec(TINY, model)
    assert error(codec.encode(wave), mean.transpose(1, 2)) < 1e-5
    assert error(codec.posterior(wave), torch.cat([mean, std], 1)) < 1e-5
    assert codec.encode(wave[..., :-1]).shape == mean.transpose(1, 2).shape
    assert codec.encode(wave[:1, :, :1]).shape == (1, 1, TINY.latent_dim)


# Oobleck, its weights

def as_file(model: Oobleck, config: CodecConfig, norm: str, layout: str,
            prefix: str) -> dict[str, torch.Tensor]:
    """A model's weights as a file has them."""
    if norm == "weight":
        twin = Oobleck(config)
        twin.load_state_dict(model.state_dict())
        model = twin.fold()
    first = "decoder.conv1." if layout == "diffusers" else "decoder.layers.0."
    table = next(names for _, names in layouts(model, [prefix]) if prefix + first + norm in names)
    tensors = {theirs: model.state_dict()[ours].clone() for theirs, ours in table.items()}
    if layout == "stable-audio-tools":
        tensors = {k: v.flatten() if k.endswith(("alpha", "beta")) else v for k, v in tensors.items()}
    return tensors


@pytest.fixture(scope="module")
def tensors(model):
    return as_file(model, TINY, "weight_g", "diffusers", "")


@pytest.mark.parametrize("norm, layout, prefix", LAYOUTS)
def test_layouts(norm, layout, prefix, model, tmp_path, capsys):
    """A layout that is refused, or read with two tensors exchanged; other tensors dropped without a word."""
    others = {"model.model.x": torch.zeros(3), "autoencoder_ema.decoder.layers.0.bias": torch.zeros(32)}
    path, x = tmp_path / "a.safetensors", latents(10).transpose(1, 2)
    save_file(as_file(model, TINY, norm, layout, prefix) | (others if prefix else {}), path)
    loaded, want = load_oobleck(path, TINY), model.decode(x)
    assert error(loaded.decode(x), want) < 1e-6 * want.abs().max()
    assert error(loaded.encode(want)[1], model.encode(want)[1]) < 1e-6
    assert not any(p.requires_grad for p in loaded.parameters())
    said = capsys.readouterr().out
    assert said == (f"{path}: 2 tensors outside of {prefix}* are ignored\n" if prefix else "")


def test_files_of_pytorch(model, tensors, tmp_path):
    """A .bin that is refused, in PyTorch's old format or below the `state_dict` of a training run."""
    torch.save(tensors, tmp_path / "a.bin")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.ckpt")
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    x = latents(10).transpose(1, 2)
    for path in tmp_path.iterdir():
        assert error(load_oobleck(path, TINY).decode(x), model.decode(x)) < 1e-6


def test_half_precision_file(tensors, tmp_path):
    """A float16 file computed in float16, or one in float32 where bfloat16 was asked for."""
    save_file({k: v.half() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        codec = make_codec(TINY, tmp_path / "a.safetensors", dtype=dtype)
        assert {t.dtype for t in codec.model.state_dict().values()} == {dtype}
        assert not any("parametrizations" in name for name in codec.model.state_dict())
        assert codec.decode(latents(3)).dtype == torch.float32


def broken_weights(tensors: dict) -> dict[str, dict]:
    first = "decoder.conv1.weight_g"
    return {f"1 tensors missing: {first}": {k: v for k, v in tensors.items() if k != first},
            f"1 tensors misshapen: {first} (5, 1, 1), expected (32, 1, 1)":
                tensors | {first: torch.zeros(5, 1, 1)},
            "1 tensors unknown: decoder.conv3.bias": tensors | {"decoder.conv3.bias": torch.zeros(2)},
            "tensors missing: encoder.": {k: v for k, v in tensors.items() if k.startswith("decoder.")},
            "2 tensors unknown: a, b": {"a": torch.zeros(2), "b": torch.zeros(2)}}


def test_wrong_weights(tensors, tmp_path):
    """Random weights left in place of missing ones; an error that does not tell which tensor it is."""
    path = tmp_path / "a.safetensors"
    for text, wrong in broken_weights(tensors).items():
        save_file(wrong, path)
        with pytest.raises(UserError) as caught:
            load_oobleck(path, TINY)
        assert str(caught.value).startswith(f"{path}: not this autoencoder's weights: ")
        assert text in str(caught.value) and len(str(caught.value)) < 500


class Command:
    """What a foreign pickle may hold: it would run when it is read."""

    def __reduce__(self):
        return (eval, ("1/0",))


def test_broken_files(tensors, tmp_path):
    """A traceback, or a pickle's code that runs, for a cut download or another kind of file."""
    save_file(tensors, tmp_path / "whole.safetensors")
    torch.save(tensors, tmp_path / "whole.pt")
    save_script(Fitting(random_model()), tmp_path / "script.pt")
    files = {"junk.safetensors": b"junk" * 99, "junk.pt": b"junk" * 99, "empty.bin": b"",
             "zip.pt": b"PK\x05\x06" + b"\x01" * 16 + b"\0\0", "foreign.pt": pickle.dumps(Command(), 2),
             **{f"cut.{p.name}": p.read_bytes()[:-200] for p in tmp_path.iterdir()}}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": Command()}, tmp_path / "command.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in [*files, "list.pt", "command.pt", "folder.pt", "none.pt", "none.safetensors"]:
        with pytest.raises(UserError) as caught:
            load_oobleck(tmp_path / name, TINY)
        assert str(caught.value).startswith(f"{tmp_path / name}: not an autoencoder's weights ("), name
        assert len(str(caught.value)) < 300


# Oobleck, as TorchScript

@pytest.mark.parametrize("wrap", [nn.Identity(), Wrapped], ids=["bare", "wrapped"])
def test_script_whose_weights_fit(wrap, model, tmp_path, capsys, recwarn):
    """TorchScript run, slowly and in float32 only, where its weights would do; a warning of being old."""
    path = tmp_path / "vae_model.pt"
    save_script(wrap(Fitting(random_model())), path)
    recwarn.clear()
    loaded = load_oobleck(path, TINY, dtype=torch.bfloat16)
    assert isinstance(loaded, Oobleck) and next(loaded.parameters()).dtype == torch.bfloat16
    said = capsys.readouterr().out
    assert said == f"{path}: a TorchScript file; its weights are taken, its code is not run\n"
    want = model.decode(latents(10).transpose(1, 2))
    for trust in (False, True):
        codec = make_codec(TINY, path, trust=trust)
        assert isinstance(codec.model, Oobleck)
        assert error(codec.decode(latents(10)), want) < 1e-6 * want.abs().max()
    assert not list(recwarn)


def test_a_script_is_not_run_to_find_out_what_it_is(tmp_path, monkeypatch):
    """A file's code ran before the file was refused, and wrote where it liked; so could its pickle."""
    path, target = tmp_path / "vae.pt", tmp_path / "written"
    save_script(Hostile(2, 4, 32, str(target)), path)
    with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
        patched.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("compiled"))
        make_codec(TINY, path)
    assert str(caught.value).startswith(f"{path}: not this autoencoder's weights: ")
    assert "its own code would be needed, which --trust-vae runs" in str(caught.value)
    assert "\n" not in str(caught.value) and not target.exists()
    make_codec(TINY, path, trust=True)
    assert target.exists()                                   # so it would have been

    save_script(Fitting(random_model()), path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "pickle.pt", "w") as other:
        for name in archive.namelist():
            hostile = pickle.dumps(Command(), 2) if name.endswith("data.pkl") else None
            other.writestr(name, hostile or archive.read(name))
    with pytest.raises(UserError, match=r"pickle\.pt: holds \w+\.eval, which is no tensor"):
        make_codec(TINY, tmp_path / "pickle.pt")


def test_only_a_flag_lets_code_run(tmp_path):
    """A settings file, or a song's account, that somebody passes on together with a decoder's file."""
    for name, values in (("a.json", {"trust_vae": True}),
                         ("b.json", {"settings": {"trust_vae": True}, "request": {}})):
        (tmp_path / name).write_text(json.dumps(values))
        args = ["--config", str(tmp_path / name)]
        for cls in (SampleConfig, TrainConfig, PrepareConfig):
            if name == "a.json":
                with pytest.raises(UserError, match="trust_vae True: lets code run; only a flag may"):
                    parse(cls, "", args)
            elif cls is SampleConfig:
                assert not parse(cls, "", args).trust_vae and parse(cls, "", [*args, "--trust-vae"]).trust_vae


def test_script_that_computes_something_else(model, tmp_path, capsys):
    """Weights that fit taken for the network that they are not from."""
    save_script(Fitting(random_model(), gain=1.1), tmp_path / "vae.pt")
    loaded = load_oobleck(tmp_path / "vae.pt", TINY, trust=True)
    assert isinstance(loaded, Scripted) and "computes something else" in capsys.readouterr().out
    x = latents(10).transpose(1, 2)
    assert error(loaded.decode(x), 1.1 * model.decode(x)) < 1e-5


def test_script_whose_weights_do_not_fit(tmp_path, capsys):
    """A TorchScript file of unknown insides that is refused; softplus forgotten, or applied twice."""
    foreign, path = Foreign(2, 4, 32).requires_grad_(False), tmp_path / "vae.pt"
    save_script(foreign, path)
    codec = make_codec(TINY, path, dtype=torch.bfloat16, trust=True)
    said = capsys.readouterr().out
    assert isinstance(codec.model, Scripted) and said.count("\n") == 1
    assert said.startswith(f"{path}: ") and said.endswith("; its TorchScript is run as it is\n")
    z = latents(300, 2)
    assert error(codec.decode(z), foreign.up(z.transpose(1, 2))) < 0.05          # latents went in as bfloat16
    codec = make_codec(TINY, path, trust=True)
    wave = codec.decode(z)
    assert error(wave, foreign.up(z.transpose(1, 2))) < 1e-6
    mean, raw = foreign.down(wave).chunk(2, 1)
    want = torch.cat([mean, torch.log1p(raw.exp()) + 1e-4], 1)
    assert error(codec.posterior(wave), want) < 1e-6


@pytest.mark.parametrize("script", [Foreign(2, 5, 32), Foreign(1, 4, 32), Foreign(2, 4, 16)],
                         ids=["latent_dim", "wave_channels", "hop"])
def test_script_of_other_sizes(script, tmp_path):
    """An autoencoder of another model, found out at the end of a long sampling."""
    save_script(script, tmp_path / "vae.pt")
    with pytest.raises(UserError, match=r"vae.pt: not an autoencoder's weights \(.*\): "):
        load_oobleck(tmp_path / "vae.pt", TINY, trust=True)


def test_make_codec_mistakes():
    with pytest.raises(UserError, match="codec wav: expected sung or oobleck"):
        make_codec(dataclasses.replace(CONFIG, kind="wav"))
    for config in (CONFIG, FULL):
        with pytest.raises(UserError, match=f"codec {config.kind}: needs the file of its weights"):
            make_codec(config)


def test_published_silence(tmp_path):
    """The published file holds a view of a larger tensor; a foreign one would pad songs with noise."""
    path, whole = tmp_path / "silence.pt", torch.randn(430, 64)
    torch.save(whole[3], path)
    frame = silence_of(FULL, lambda: path)
    assert torch.equal(frame, whole[3]) and frame.untyped_storage().nbytes() == 256
    assert torch.equal(silence_of(CONFIG, lambda: pytest.fail("asked")), SungCodec(CONFIG).silence)
    for wrong in (torch.ones(63), torch.full((64,), math.nan), [1.0], CONFIG):
        torch.save(wrong, path)
        with pytest.raises(UserError, match="silence.pt: not 64 numbers"):
            silence_of(FULL, lambda: path)
