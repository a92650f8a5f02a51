"""model.py against numbers computed with the original, and the properties that the numbers cannot show."""

import dataclasses
import resource
import subprocess
import sys

import golden as names
import pytest
import torch
from conftest import ROOT
from golden import error
from safetensors.torch import save_file

from config import PRESETS, ModelConfig
from model import DiT, ScalarEmbed, attend, load_model, load_weights, rotary_tables
from sampler import sample, time_grid

CPU = torch.device("cpu")


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


def test_attention_in_bfloat16():
    """Head by head on a CPU, which is faster than torch's kernel: as near to float32 as that is."""
    q, k, v = torch.randn(3, 2, 4, 50, 16, generator=torch.Generator().manual_seed(0))
    exact, half = attend(q, k, v, 0.25), [x.bfloat16() for x in (q, k, v)]
    ours = (attend(*half, 0.25).float() - exact).norm()
    kernel = (torch.nn.functional.scaled_dot_product_attention(*half, scale=0.25).float() - exact).norm()
    assert attend(*half, 0.25).dtype == torch.bfloat16 and ours < 1.5 * kernel < 0.01 * exact.norm()


@torch.no_grad()
def test_padded_heads():
    """Heads of 44 channels, which a GPU widens to 48: zeros in the wrong half turn the wrong pairs."""
    torch.manual_seed(0)
    model = DiT(ModelConfig(176, 2, 4, 2, 4, 8, 8, 8, 1, 16))
    batch = torch.randint(8, (2, 64)), torch.randn(2, 8), *torch.rand(3, 2)
    x, time = torch.randn(2, 16, 4), torch.tensor(0.3)
    plain = model(x, time, model.condition(*batch))
    assert error(model.pad_heads()(x, time, model.condition(*batch)), plain) < 1e-6
    assert model.transformer_blocks[0].self_attn.q_proj.weight.shape == (192, 176)


def test_a_row_may_have_its_own_text(model, inputs):
    """Which training does: nothing is gathered, and the numbers stay."""
    given = inputs | {"duration_rel": inputs["duration_rel_short"]}
    args = given["text"], given["style_prompt"], *(given[k] for k in names.SCALARS)
    own, named = (model(given["x"], given["time"], model.condition(*args, row=row))
                  for row in (None, torch.arange(2)))
    assert torch.equal(own, named)


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
