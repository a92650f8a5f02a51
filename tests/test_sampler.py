"""sampler.py against numbers computed with the original, and the properties that the numbers cannot show."""

import math
import weakref

import golden as names
import pytest
import torch
from golden import error

from config import FAST, GUIDANCE_WEIGHTS, PRESETS, Guidance
from model import flow_loss
from sampler import PASSES, averaged, guided, integrate, sample, sample_windows, time_grid
from sampler import with_points_at_jumps

ALWAYS = Guidance("none", (), (0.0, 1.0))

TINY_STEPS = {"dual": (8, "dual", (4.7, 2.6), (0.05, 1.0), 0.0),
              "dual_fix": (8, "dual_fix", (4.7, 2.6), (0.05, 1.0), 0.0),
              "cfg4": (8, "single", (4.0,), None, 0.0), "nocfg": (8, "none", (), None, 0.0),
              "dual_range_edges": (5, "dual", (4.7, 2.6), (0.25, 0.75), 0.0),
              "cfg2_range": (11, "single", (2.0,), (0.35, 0.65), 0.0),
              "dual_sway": (8, "dual", (4.7, 2.6), (0.05, 1.0), -1.0)}


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


# Solvers

def error_of(solver, steps, jumps):
    """Of d log x / dt = cos 3t, on a swayed grid; with jumps, 4 more where guidance acts."""
    low, high = (0.3, 0.8) if jumps else (0.0, 1.0)
    velocity = lambda x, t: (torch.cos(3 * t) + 4 * (jumps and low <= t <= high)) * x  # noqa: E731
    x = integrate(velocity, torch.ones(1, 1, 1, dtype=torch.float64), time_grid(steps + 1, -0.5).double(),
                  Guidance("none", (), (low, high)), solver)
    return abs(math.log(x.item()) - math.sin(3) / 3 - 4 * jumps * (high - low))


@pytest.mark.parametrize("solver, least, most, jumps", [
    ("euler", 1.8, 2.2, False), ("ab2", 3.5, 4.3, False), ("ab2", 3.5, 4.3, True), ("abm", 6.5, 9.5, False),
    ("abm", 6.5, 9.5, True)])
def test_order_of_solvers(solver, least, most, jumps):
    """Twice the steps: half the error, a quarter, an eighth, also where guidance makes the velocity jump."""
    assert least < error_of(solver, 64, jumps) / error_of(solver, 128, jumps) < most


@pytest.mark.parametrize("steps", (3, 5, 9, 13))
@pytest.mark.parametrize("low, high", [(0.85, 0.95), (0.4, 0.44), (0.7, 0.95), (0.05, 1.0), (0.0, 0.1)])
def test_narrow_guidance_acts(steps, low, high):
    """A point for its end that takes the place of the one for its beginning; points out of order."""
    grid = with_points_at_jumps(time_grid(steps, -1.0), Guidance("dual", (1.0, 1.0), (low, high)))
    assert (grid.diff() > 0).all() and len(grid) == steps and (grid[0], grid[-1]) == (0, 1)
    assert any(low <= t <= high for t in grid[:-1])


def test_fast_asks_the_network_twelve_times(model, golden):
    """One call a step, whatever the solver, and the passes of a guided step in one batch."""
    given, rows = golden("b_sample_inputs.safetensors"), []
    hook = model.register_forward_hook(lambda m, args, out: rows.append(len(out) // 2))
    batch = {"phonemes": given["text"], "style": given["style_prompt"],
             **{k: given[k] for k in names.SCALARS}}
    out = sample(model, batch, given["y0"], time_grid(FAST["steps"], FAST["sway"]),
                 PRESETS["jam-0.5"].guidance, given["negative_style"], FAST["solver"])
    hook.remove()
    assert len(rows) == 12 and sum(rows) <= 36 and rows[-1] == 3
    assert error(out, golden("b_sample_outputs.safetensors")["dual"]) < 0.5      # of 8 Euler steps


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
    out = integrate(averaged(windows, length), noise, time_grid(9), ALWAYS)
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


@pytest.mark.parametrize("solver", [pytest.param("euler", marks=pytest.mark.slow), "abm"])
def test_kept_frames(model, golden, solver):
    """Frames that are kept end as they were, by any solver; the others are sung to fit them."""
    given = golden("b_sample_inputs.safetensors")
    batch = {"phonemes": given["text"], "style": given["style_prompt"],
             **{k: given[k] for k in names.SCALARS}}
    settings = (given["y0"], time_grid(9, -1.0), Guidance("dual", (2.0, 2.0), (0.0, 1.0)),
                given["negative_style"], solver)
    free = sample_windows(model, [(0, batch)], *settings)
    until = torch.full((free.shape[1], 1), 2.0)
    until[20:30] = 0
    found = [sample_windows(model, [(0, batch)], *settings, keep=(old, until)) for old in (free, free + 1)]
    for old, out in zip((free, free + 1), found, strict=True):
        assert error(out[:, :20], old[:, :20]) < 1e-5 and error(out[:, 30:], old[:, 30:]) < 1e-5
    until[20:30] = 0.5                                       # led half of the way
    half = sample_windows(model, [(0, batch)], *settings, keep=(free + 1, until))
    assert 0 < error(half[:, 20:30], free[:, 20:30] + 1) < error(found[1][:, 20:30], free[:, 20:30] + 1)
    apart = [(out[:, 20:30] - free[:, 20:30]).abs().mean() for out in found]
    assert 0 < apart[0] < apart[1]


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
    """config.py, which knows no network, lists what sampler.py does."""
    assert list(GUIDANCE_WEIGHTS) == list(PASSES)
