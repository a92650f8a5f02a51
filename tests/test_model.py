"""model.py against numbers computed with the original, and the properties that the numbers cannot show."""

import dataclasses
import resource
import subprocess
import sys
import weakref

import golden as names
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from config import GUIDANCE_WEIGHTS, PRESETS, Guidance, ModelConfig
from model import PASSES, DiT, ScalarEmbed, averaged, flow_loss, guided, integrate, load_model, load_weights
from model import rotary_tables, sample, sample_windows, time_grid

CPU = torch.device("cpu")

TINY_STEPS = {"dual": (8, "dual", (4.7, 2.6), (0.05, 1.0), None),
              "dual_fix": (8, "dual_fix", (4.7, 2.6), (0.05, 1.0), None),
              "cfg4": (8, "single", (4.0,), None, None), "nocfg": (8, "none", (), None, None),
              "dual_range_edges": (5, "dual", (4.7, 2.6), (0.25, 0.75), None),
              "cfg2_range": (11, "single", (2.0,), (0.35, 0.65), None),
              "dual_sway": (8, "dual", (4.7, 2.6), (0.05, 1.0), -1.0)}


def error(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def meta(golden):
    return golden("tiny_meta.json")


@pytest.fixture(scope="module")
def weights(meta):
    return names.rule_weights({k: v["shape"] for k, v in meta["weight_checks"].items()})


@pytest.fixture(scope="module")
def model(meta, weights):
    return names.make_model(meta["config"], weights)


@pytest.fixture(scope="module")
def inputs(golden):
    return golden("a_forward_inputs.safetensors")


@pytest.fixture(scope="module")
def inner(golden):
    return golden("a_forward_intermediates_short.safetensors")


def test_weight_rule(meta, weights):
    """A wrong generator or scale would make every other golden test compare noise."""
    assert len(weights) == len(meta["weight_checks"])
    for key, check in meta["weight_checks"].items():
        assert weights[key].double().sum().item() == pytest.approx(check["sum"], abs=1e-6)


@pytest.mark.parametrize("case", ["normal", "drop_text", "drop_prompt", "drop_audio_cond", "short",
                                  "null_short", "drop_all_short", "scalar_time_0.4"])
def test_velocity(case, model, meta, inputs, golden):
    settings = meta["forward_cases"].get(case, {})
    given = inputs | {"duration_rel": inputs[settings.get("duration_rel", "duration_rel_full")]}
    if case == "null_short":
        given["style_prompt"] = inputs["negative_style"].expand(2, -1)
    if case == "scalar_time_0.4":
        given["time"] = torch.tensor(0.4)
    out = names.velocity(model, given,
                         *(settings.get(k, False) for k in ("drop_text", "drop_prompt", "drop_audio_cond")))
    assert error(out, golden("a_forward_outputs.safetensors")[case]) < 5e-6


@torch.no_grad()
def test_intermediates(model, inputs, inner):
    """Each stage of case `short`, so that a deviation is found where it arises."""
    given = inputs | {"duration_rel": inputs["duration_rel_short"]}
    scalars = {"time": model.time_embed, "start_time": model.start_time_embed,
               "duration_abs": model.duration_abs_embed, "duration_rel": model.duration_rel_embed}
    embedded = {name: module(given[name]) for name, module in scalars.items()}
    for name, value in embedded.items():
        assert error(value, inner[f"{name}_embed"]) < 1e-5
    assert error(sum(embedded.values()), inner["c"]) < 1e-5
    assert error(model.text_embed(given["text"]), inner["text_embed"]) < 1e-5
    caught = {}
    stages = [("position", model.input_embed.conv_pos_embed), ("norm_out", model.norm_out),
              *((f"block{i}_raw", b) for i, b in enumerate(model.transformer_blocks))]
    hooks = [module.register_forward_hook(
                 lambda m, args, out, name=name: caught.update({name: out, f"{name}_in": args[0]}))
             for name, module in stages]
    condition = names.condition(model, given, False, False, given["cond"])
    model(given["x"], given["time"], condition)
    for hook in hooks:
        hook.remove()
    assert error(caught["position_in"], inner["input_proj"]) < 1e-5
    assert error(caught["block0_raw_in"], inner["input_embed"]) < 1e-5
    assert error(caught["norm_out"], inner["norm_out"]) < 1e-5
    for i in range(4):
        assert error(caught[f"block{i}_raw"], inner[f"block{i}_raw"]) < 1e-5
        after = caught[f"block{i + 1}_raw_in"] if i < 3 else caught["norm_out_in"]
        assert error(after, inner[f"block{i}"]) < 1e-5
        if i < 2:
            assert error(condition.fusion[i], inner[f"fusion{i}"]) < 1e-5
    unstyled = given | {"style_prompt": inputs["negative_style"].expand(2, -1)}
    null = names.condition(model, unstyled, True, False)
    assert error(model.text_embed(torch.zeros_like(given["text"])), inner["null_short.text_embed"]) < 1e-5
    assert error(model.embed_input(given["x"], embedded["time"], null),
                 inner["null_short.input_embed"]) < 1e-5


@torch.no_grad()
def test_parts(model, golden):
    """Small inputs that make the epsilons of the norms visible; a wrong one hides in full-size outputs."""
    parts = golden("a_submodules.safetensors")
    for i in range(2):
        x = parts[f"block{i}_in"]
        cos, sin = rotary_tables(x.shape[1], x.shape[2] // 32)
        assert error(model.transformer_blocks[i](x, cos, sin), parts[f"block{i}_out"]) < 1e-5
    cos, sin = rotary_tables(96, 4)
    assert max(error(cos, parts["rope_cos"]), error(sin, parts["rope_sin"])) < 1e-5
    assert error(model.text_embed.text_blocks[0](parts["convnext0_in"]), parts["convnext0_out"]) < 1e-5
    assert error(model.norm_out(parts["norm_out_in"], parts["norm_out_c"]), parts["norm_out_out"]) < 1e-5
    # one ulp of an argument near 1000 rad is 6e-5, and exp() differs by an ulp between processors
    assert error(ScalarEmbed.features(parts["time_in"]), parts["time_sinusoid"]) < 1e-4
    assert error(model.time_embed(parts["time_in"]), parts["time_mlp_out"]) < 1e-5
    table = model.text_embed.positions(4 * 96)
    assert error(table[:8], parts["text_pos_table_first8"]) < 1e-5
    assert error(table[-2:], parts["text_pos_table_last2"]) < 1e-5


def test_compact(golden):
    """Stored weights, and a text width that differs from 512."""
    values = golden("compact_io.safetensors")
    meta = golden("compact_meta.json")
    model = names.make_model(meta["config"], golden("compact_weights.safetensors"))
    assert error(names.velocity(model, values), values["out_normal"]) < 5e-6
    assert error(names.velocity(model, values, True, True, True), values["out_drop_all"]) < 5e-6


@pytest.mark.parametrize("case", TINY_STEPS)
def test_sampler(case, model, meta, golden):
    """Final latents, and as many network rows as the original made calls for each song."""
    given, calls = golden("b_sample_inputs.safetensors"), []
    hook = model.register_forward_hook(lambda m, args, out: calls.append(len(out) // 2))
    out = names.sample(model, given, *TINY_STEPS[case])
    hook.remove()
    assert error(out, golden("b_sample_outputs.safetensors")[case]) < 5e-5
    assert sum(calls) == meta["sampling"][case]["network_calls"]
    assert len(calls) == meta["sampling"][case]["euler_steps"]     # all passes of a step are one batch


def test_sampler_trajectory(model, golden):
    """Every state on the way, so that errors that cancel at the end are seen."""
    given = golden("b_sample_inputs.safetensors")
    want = golden("b_sample_outputs.safetensors")["dual.trajectory"]
    states = []
    hook = model.register_forward_pre_hook(lambda m, args: states.append(args[0][:2].clone()))
    final = names.sample(model, given, *TINY_STEPS["dual"])
    hook.remove()
    assert max(error(a, b) for a, b in zip([*states, final], want, strict=True)) < 5e-5


def test_sampler_batch_of_variants(model, golden):
    """One song sung from two noises in a batch."""
    given, want = golden("b_sample_inputs.safetensors"), golden("b_sample_outputs.safetensors")
    twice = {k: v[:1].repeat(2, *[1] * (v.dim() - 1)) for k, v in given.items() if k != "negative_style"}
    batch = twice | {"y0": want["infer2.y0"], "negative_style": given["negative_style"]}
    out = names.sample(model, batch, 4, "dual", (4.7, 2.6), (0.05, 1.0))
    assert max(error(out[i:i + 1], want[f"infer2.part{i}"]) for i in range(2)) < 5e-5


@pytest.mark.parametrize("case", ["no_drop", "drop_style_only", "drop_both"])
def test_training_loss_and_gradients(case, model, golden):
    want, stored = golden("c_train_loss.json")[case], golden("c_train_outputs.safetensors")
    model.zero_grad()
    loss = names.train_loss(model, golden("c_train_inputs.safetensors"), want["drop_text"],
                            want["drop_prompt"])
    loss.backward()
    assert loss.item() == pytest.approx(want["loss"], abs=5e-6)
    for name, parameter in model.named_parameters():
        key = f"transformer.{name}"
        assert parameter.grad.norm().item() == pytest.approx(want["grad_norm"][key], rel=1e-4, abs=1e-9)
        if f"{case}.grad.{key}" in stored:
            gradient = stored[f"{case}.grad.{key}"]
            assert error(parameter.grad[..., :gradient.shape[-1]], gradient) < 1e-6


def test_padding_bias_rule(golden):
    """The float32 product is truncated: 283 of 5000 lengths lose one frame."""
    want = golden("duration_mask.json")
    lost = {frames: real for frames, real in want["frames_and_T_real"]}
    model = DiT(ModelConfig(32, 2, 2, 2, 4, 8, 8, 8, 1, max_frames=5000))
    torch.nn.init.ones_(model.duration_pad_bias)
    model.text_embed.forward = lambda ids: torch.zeros(len(ids), 5000, 8)
    frames = torch.arange(1, 5001)
    frame_s = 2048 / 44100
    for part in frames.split(250):
        rel = torch.tensor([(n * frame_s) / (5000 / (44100 / 2048)) for n in part.tolist()])
        real = 5000 - model.embed_text(torch.zeros(len(part), 1, dtype=torch.long), rel)[:, :, 0].sum(1)
        assert real.tolist() == [lost.get(n, n) for n in part.tolist()]


def test_full_size_names_and_shapes(golden):
    """JAM-0.5's 232 tensors, 532 934 592 parameters, under their published names."""
    want = golden("full_size_keys.json")
    sizes = ({k: want["config"][k] for k in names.SIZES if k in want["config"]}
             | {"heads": 32, "cond_dim": 512})
    with torch.device("meta"):
        model = DiT(ModelConfig(**sizes))
    assert {f"transformer.{k}": list(v.shape) for k, v in model.state_dict().items()} == \
        {k: list(v["shape"]) for k, v in want["tensors"].items()}
    assert sum(p.numel() for p in model.parameters()) == 532_934_592


def test_weights_load_strictly(model, weights):
    """The original loads non-strictly: a renamed tensor stays random and nobody notices."""
    name = "transformer.proj_out.bias"
    for broken, text in [({k: v for k, v in weights.items() if k != name}, "missing " + name),
                         (weights | {"transformer.extra": weights[name]}, "unknown transformer.extra"),
                         (weights | {name: torch.zeros(3)}, "not (16,)")]:
        with pytest.raises(ValueError, match="1 tensors do not fit") as caught:
            load_weights(model, broken, "FILE")
        assert text in str(caught.value) and str(caught.value).startswith("FILE: ")


def golden_file(meta, weights, folder, dtype=torch.float32):
    """The tiny model's weights in a file, and its sizes."""
    save_file({k: v.to(dtype) for k, v in weights.items()}, folder / "model.safetensors")
    config = meta["config"] | {"heads": 32, "cond_dim": 512}
    return folder / "model.safetensors", ModelConfig(**{name: config[name] for name in names.SIZES})


def test_model_from_a_file(meta, weights, model, inputs, tmp_path):
    """Weights that are not the file's, or tensors left without any."""
    loaded = load_model(*golden_file(meta, weights, tmp_path), CPU)
    given = inputs | {"duration_rel": inputs["duration_rel_full"]}
    assert torch.equal(names.velocity(loaded, given), names.velocity(model, given))
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters()) and not loaded.training


def test_half_precision(meta, weights, model, inputs, tmp_path):
    """Inputs in another type than the weights; scalars or positions that bfloat16 cannot tell apart."""
    path, sizes = golden_file(meta, weights, tmp_path, torch.float16)
    exact = load_model(path, sizes, CPU)
    assert exact.dtype == torch.float32                      # whatever the file's type is
    half = load_model(path, sizes, CPU, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    given = inputs | {"duration_rel": inputs["duration_rel_short"]}
    v, w = names.velocity(exact, given), names.velocity(half, given).float()
    assert ((v - w).norm() / v.norm()).item() < 0.02         # measured: 0.007; bfloat16 has 8 bits


@pytest.mark.parametrize("content, fragment", [(b"", "safetensors: "), (b"junk" * 9, "safetensors: "),
                                               (None, "No such file")])
def test_file_that_is_no_model(meta, weights, tmp_path, content, fragment):
    path, sizes = golden_file(meta, weights, tmp_path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=fragment):
        load_model(path, sizes, CPU)


LOAD = """
import resource, sys
from pathlib import Path
import torch
from config import ModelConfig
from model import DiT, load_model
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
model = load_model(Path(sys.argv[1]), ModelConfig(*map(int, sys.argv[3:])), torch.device("cpu"),
                   getattr(torch, sys.argv[2]))
assert sum(p.float().sum().item() for p in model.parameters())          # every page is touched
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


def memory_of_loading(path, sizes, dtype):
    """How much memory another process needs at most to load a file and look at it, relative to its size."""
    args = [path, dtype, *dataclasses.astuple(sizes)]
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("dtype, limit", [pytest.param("float32", 1.2, marks=pytest.mark.slow),
                                          pytest.param("bfloat16", 0.8, marks=pytest.mark.slow)])
def test_memory_holds_the_weights_once(tmp_path, dtype, limit):
    """A model that is initialised, read and copied takes three times its file."""
    sizes = ModelConfig(dim=768, depth=16, heads=8, ff_mult=4, mel_dim=64, text_num_embeds=64, text_dim=128,
                        cond_dim=128, conv_layers=1, max_frames=64)
    with torch.device("meta"):
        shapes = {f"transformer.{k}": v.shape for k, v in DiT(sizes).state_dict().items()}
    save_file({k: torch.full(shape, 0.5) for k, shape in shapes.items()}, tmp_path / "model.safetensors")
    assert memory_of_loading(tmp_path / "model.safetensors", sizes, dtype) < limit


@pytest.mark.slow
def test_full_size(golden, tmp_path):
    """JAM-0.5's own size: every weight is the rule's, loads in 1.2 times its file, and sings 512 frames."""
    want, path = golden("full_size_keys.json")["tensors"], tmp_path / "jam-0_5.safetensors"
    weights = names.rule_weights({k: v["shape"] for k, v in want.items()})
    for key, check in want.items():
        assert weights[key].double().sum().item() == pytest.approx(check["sum"], abs=1e-4)
    save_file(weights, path)
    del weights
    sizes = PRESETS["jam-0.5"].model
    assert memory_of_loading(path, sizes, "float32") < 1.2
    assert memory_of_loading(path, sizes, "bfloat16") < 0.8
    model, rng = load_model(path, sizes, CPU), torch.Generator().manual_seed(0)
    batch = {"phonemes": torch.randint(0, 64, (1, 2048), generator=rng),
             "style": torch.randn(1, 512, generator=rng) / 512 ** 0.5, "start_time": torch.zeros(1),
             "duration_abs": torch.tensor([0.5]), "duration_rel": torch.tensor([400 / 5000])}
    noise = torch.randn(1, 512, 64, generator=rng)
    with torch.no_grad():
        one = model(noise, torch.tensor(0.3), model.condition(**batch))
        two = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in batch.items()}
        both = model(noise.repeat(2, 1, 1), torch.tensor(0.3), model.condition(**two))
    assert one.shape == noise.shape and one.isfinite().all() and one.std() > 0.01
    assert error(both[1:], one) < 1e-4
    latents = sample(model, batch, noise, time_grid(3), PRESETS["jam-0.5"].guidance, torch.zeros(1, 512))
    assert latents.isfinite().all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 * 1024 ** 2       # KiB


def test_time_runs_from_noise_to_data(model, golden):
    """t = 0 is noise, t = 1 is data: the exact velocity of a known pair has no loss and leads to the data."""
    given = golden("c_train_inputs.safetensors")
    x0, x1 = given["x0"], given["x1"]
    perfect = lambda x, time, condition: (x1 - x0).repeat(len(x) // len(x1), 1, 1)  # noqa: E731
    assert flow_loss(perfect, x1, x0, given["time"], None).max() < 1e-12
    perfect.condition = model.condition
    batch = {"phonemes": given["text"], "style": given["style_prompt"],
             **{k: given[k] for k in names.SCALARS}}
    out = sample(perfect, batch, x0, time_grid(9), Guidance("dual", (3.0, 2.0)), torch.zeros(1, 512))
    assert error(out, x1) < 1e-5


def test_neutral_guidance(model, golden):
    """(0,) is neutral for single guidance, (1, 1) for the dual modes."""
    given = golden("b_sample_inputs.safetensors")
    plain = names.sample(model, given, 4, "none", (), None)
    for mode, neutral in [("single", (0.0,)), ("dual", (1.0, 1.0)), ("dual_fix", (1.0, 1.0))]:
        assert error(names.sample(model, given, 4, mode, neutral, None), plain) < 1e-5


def test_song_is_unchanged_by_its_batch_mates(model, golden):
    given = golden("b_sample_inputs.safetensors")
    both = names.sample(model, given, *TINY_STEPS["dual"])
    alone = {k: v[1:] if len(v) == 2 else v for k, v in given.items()}
    assert error(names.sample(model, alone, *TINY_STEPS["dual"]), both[1:]) < 5e-6


def test_text_is_embedded_once_per_song(model, golden):
    """What flow time does not change is computed once: the text branch runs once, with two texts a song."""
    given, calls = golden("b_sample_inputs.safetensors"), []
    hook = model.text_embed.register_forward_hook(lambda m, args, out: calls.append(len(out)))
    names.sample(model, given, *TINY_STEPS["dual"])
    hook.remove()
    assert calls == [4]


def test_wrong_shapes_are_refused(model, golden):
    given = golden("a_forward_inputs.safetensors") | {"duration_rel": torch.ones(2)}
    with pytest.raises(ValueError, match="latents"):
        names.velocity(model, given | {"x": given["x"][:, :90]}, drop_audio=True)
    with pytest.raises(ValueError, match="phoneme cells"):
        names.velocity(model, given | {"text": given["text"][:, :90]}, drop_audio=True)


def test_fresh_model_starts_as_published():
    """Text fusion, GRN and padding bias start as zero; nothing else does."""
    torch.manual_seed(0)
    model = DiT(ModelConfig(32, 2, 2, 2, 4, 8, 8, 8, 1, 16))
    zero = {name for name, p in model.named_parameters() if not p.any() and ".norm." not in name}
    assert zero == {"duration_pad_bias", "text_fusion_linears.0.0.weight", "text_fusion_linears.0.0.bias",
                    "text_embed.text_blocks.0.grn.gamma", "text_embed.text_blocks.0.grn.beta"}


def test_unguided_steps_compute_one_pass(model, golden):
    """Outside its range guidance costs nothing."""
    given, rows = golden("b_sample_inputs.safetensors"), []
    hook = model.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    batch = {"phonemes": given["text"], "style": given["style_prompt"],
             **{k: given[k] for k in names.SCALARS}}
    guidance = Guidance("dual", (2.0, 2.0), (0.3, 0.6))
    sample(model, batch, given["y0"], time_grid(5), guidance, given["negative_style"])
    hook.remove()
    assert rows == [2, 2, 2 * len(PASSES["dual"]), 2]


# Songs longer than the window

def constant(value):
    """What makes a window's velocity: the value, whatever the latents are."""
    return lambda: lambda x, time: torch.as_tensor(value).expand_as(x)


@pytest.mark.parametrize("starts, length", [([0], 9), ([0, 7], 8), ([0, 5], 8), ([0, 1], 8), ([0, 3, 7], 9),
                                            ([0, 2, 5], 8)])
def test_windows_that_agree_are_one(starts, length):
    """Weights of two or three windows that do not sum to 1: louder or fainter latents at joins."""
    rng = torch.Generator().manual_seed(0)
    noise, truth = torch.randn(2, 1, starts[-1] + length, 3, generator=rng)
    windows = [(a, constant(truth[:, a:a + length] - noise[:, a:a + length])) for a in starts]
    out = integrate(averaged(windows, length), noise, time_grid(9), iter)
    assert error(out, truth) < 1e-5


def test_windows_fade_linearly():
    """A step at a window's edge, which is heard as a seam."""
    x, now = torch.zeros(1, 28, 2), torch.tensor(0.5)
    second = averaged([(0, constant(0.0)), (12, constant(1.0))], 16)(x, now)[0, :, 0]          # share four
    assert torch.allclose(second, torch.tensor([0.0] * 12 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 12))
    near = averaged([(0, constant(0.0)), (5, constant(1.0))], 16)(x[:, :21], now)[0, :, 0]
    assert near.diff().min() >= 0 and near.diff().max() < 0.15          # share more than half: as gentle


@pytest.fixture(scope="module")
def long_song(model, golden):
    """Three windows of a song of 200 frames, with other words and times in each, its noise and settings."""
    given, rng = golden("b_sample_inputs.safetensors"), torch.Generator().manual_seed(1)
    batches = [{"phonemes": given["text"][i:i + 1].roll(40 * k, 1), "style": given["style_prompt"][:1],
                **{key: given[key][i:i + 1] + k / 9 for key in names.SCALARS}}
               for k, i in enumerate((0, 1, 0))]
    noise = torch.randn(1, 200, 16, generator=rng)
    return list(zip((0, 52, 104), batches)), noise, (time_grid(4), Guidance("dual", (4.7, 2.6), (0.3, 1.0)),
                                                     given["negative_style"][:1])


@torch.no_grad()
def test_long_songs(model, long_song):
    """At each step all windows see the same latents, each with its own words; told step by step."""
    windows, x, (grid, guidance, negative) = long_song
    made = sample_windows(model, windows, x, grid, guidance, negative)
    tent = torch.tensor([min(i, 97 - i) for i in range(1, 97)])[:, None]
    for t, dt in zip(grid[:-1], grid.diff()):
        total, weight = torch.zeros_like(x), torch.zeros(200, 1)
        for first, batch in windows:
            total[:, first:first + 96] += tent * guided(model, batch, guidance, negative)(
                x[:, first:first + 96], t)
            weight[first:first + 96] += tent
        x = x + dt * total / weight
    assert error(made, x) < 1e-5
    alone = sample(model, windows[1][1], long_song[1][:, 52:148], grid, guidance, negative)
    assert error(made[:, 96:104], alone[:, 44:52]) > 2e-5    # it has heard its neighbours


def test_one_window_is_sampled_as_it_always_was(model, golden):
    """The same numbers to the last bit, and the condition computed once, not at each step."""
    given, calls = golden("b_sample_inputs.safetensors"), []
    batch = {"phonemes": given["text"], "style": given["style_prompt"],
             **{k: given[k] for k in names.SCALARS}}
    settings = given["y0"], time_grid(5), Guidance("dual", (2.0, 2.0), (0.3, 0.6)), given["negative_style"]
    hook = model.text_embed.register_forward_hook(lambda m, args, out: calls.append(len(out)))
    out = sample_windows(model, [(0, batch)], *settings)
    hook.remove()
    assert calls == [4] and torch.equal(out, sample(model, batch, *settings))


def test_memory_holds_one_condition(model, long_song, monkeypatch):
    """All windows' conditions at once, half a gigabyte each in JAM-0.5: an hour of song would fit no GPU."""
    living, compute = [], model.condition

    def watched(*args, **kwargs):
        assert not any(condition() for condition in living)
        made = compute(*args, **kwargs)
        living.append(weakref.ref(made))
        return made
    monkeypatch.setattr(model, "condition", watched)
    windows, noise, settings = long_song
    sample_windows(model, windows, noise, *settings)
    assert len(living) == 3 * 3


def test_names_of_guidance_modes():
    """config.py, which knows no network, lists what model.py does."""
    assert list(GUIDANCE_WEIGHTS) == list(PASSES)
