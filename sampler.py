"""From noise to latents: the flow's equation dx/dt = velocity, integrated with few calls of the network.

Read from the bottom: `sample_windows` sings songs of any length, `sample` those that fit one window; both
call `integrate`, which has the solvers. The velocity is `guided`: predictions of model.DiT with and without
words and style, combined by `guide`. Longer songs than a window take the mean of several (`averaged`).

Axes: B songs, T latent frames, L = 4T phoneme cells, C latent channels, E width of style and scalars, P rows
of a network's batch (songs times guidance passes).
Source: arXiv 2507.20880; tests/test_sampler.py compares all numbers.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from config import Guidance
from model import Condition, DiT


def time_grid(steps: int, sway: float = 0.0) -> Tensor:
    """`steps` flow times from 0 to 1, so steps - 1 steps; sway < 0 puts more of them near noise.

    Source: F5-TTS, arXiv 2410.06885.
    """
    t = torch.linspace(0, 1, steps)
    return t + sway * (torch.cos(math.pi / 2 * t) - 1 + t) if sway else t


# Guidance modes: the passes that a guided step needs, as (text kept, song's own style kept), in the order of
# the batch. The first is the plain conditional velocity; the negative style replaces one that is not kept.
PASSES = {"none": [(True, True)], "single": [(True, True), (False, False)],
          "dual": [(True, True), (True, False), (False, False)],
          "dual_fix": [(True, True), (False, True), (False, False)]}


def guide(mode: str, weights: tuple[float, ...], v: Sequence[Tensor]) -> Tensor:
    """Combine the velocities of PASSES[mode]. Neutral weights: (0,) for single, (1, 1) for the dual modes."""
    if mode == "single":
        return v[0] + weights[0] * (v[0] - v[1])
    if mode == "dual":                # the style's effect with words, the words' effect without style
        return weights[0] * (v[0] - v[1]) + weights[1] * (v[1] - v[2]) + v[2]
    if mode == "dual_fix":            # the style's effect without words, the words' effect with style
        return weights[0] * (v[1] - v[2]) + weights[1] * (v[0] - v[1]) + v[2]
    return v[0]


def guided_condition(model: DiT, batch: dict[str, Tensor], negative_style: Tensor, mode: str) -> Condition:
    """The condition of all passes of a guided step, P = passes * B rows; a text is embedded only once."""
    passes, songs = PASSES[mode], torch.arange(len(batch["style"]), device=batch["style"].device)
    drops_text = not all(text for text, _ in passes)
    texts = [batch["phonemes"]] + [torch.zeros_like(batch["phonemes"])] * drops_text
    scalars = {k: batch[k].repeat(len(texts)) for k in ("start_time", "duration_abs", "duration_rel")}
    style = torch.cat([batch["style"] if own else negative_style.expand_as(batch["style"])
                       for _, own in passes])
    row = torch.cat([songs if text else songs + len(songs) for text, _ in passes])
    return model.condition(torch.cat(texts), style, **scalars, row=row)


Velocity = Callable[[Tensor, Tensor], Tensor]    # of latents (B, T, C) at a flow time (), which is on the CPU


def acts(guidance: Guidance, time: Tensor) -> bool:
    """Whether guidance acts at a flow time (), on the CPU: compared in float32, ends included."""
    return bool(guidance.range[0] <= time <= guidance.range[1])


def guided(model: DiT, batch: dict[str, Tensor], guidance: Guidance, negative_style: Tensor) -> Velocity:
    """The guided velocity of songs that fit the network's window. Their condition is computed here, once."""
    songs = len(batch["style"])
    mode = "none" if guidance.mode == "single" and abs(guidance.weights[0]) < 1e-5 else guidance.mode
    condition = guided_condition(model, batch, negative_style, mode)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        now = mode if acts(guidance, time) else "none"
        passes = len(PASSES[now])
        v = model(x.repeat(passes, 1, 1), time.to(x.device), condition.first(passes * songs)).float()
        return guide(now, guidance.weights, v.split(songs))
    return velocity


def averaged(windows: Sequence[tuple[int, Callable[[], Velocity]]], length: int) -> Velocity:
    """The velocity of latents longer than the network's window: the mean of those of windows that cover them.

    A frame of a window counts the more, the farther it is from the window's edges: one window fades into the
    next linearly, if they share at most half of their frames. Source: MultiDiffusion, arXiv 2302.08113.

    Args: windows of `length` frames: the first frame of each, and what makes its velocity. It is made anew
        for each step, so that memory holds the condition of one window only, however long the song is.
    """
    def velocity(x: Tensor, time: Tensor) -> Tensor:
        frame = torch.arange(1, length + 1, device=x.device)
        weight = torch.minimum(frame, frame.flip(0)).float()[:, None]                      # (length, 1)
        total, weights = torch.zeros_like(x), x.new_zeros(x.shape[1], 1)
        for first, make in windows:
            here = slice(first, first + length)
            total[:, here] += weight * make()(x[:, here], time)
            weights[here] += weight
        return total / weights
    return velocity


def keeping(velocity: Velocity, noise: Tensor, latents: Tensor, until: Tensor) -> Velocity:
    """A velocity that leads frames straight from their noise to their latents, until a flow time (T, 1) each.

    So at each time the others see the latents, noised as far as they are themselves; any solver follows a
    straight line exactly. Frames that are kept for good have a time above 1; those that are sung freely, 0.
    Source: RePaint, arXiv 2201.09865, and SDEdit, arXiv 2108.01073, on the path of a rectified flow.
    """
    return lambda x, time: torch.where(time.to(x.device) < until, latents - noise, velocity(x, time))


def step_by(v: Sequence[Tensor], t: Sequence[Tensor], solver: str) -> Tensor:
    """The change of x over the step from t[1] to t[0]: what `integrate` adds to x at t[1].

    Euler: v[0] at t[1] holds for the whole step. Otherwise the line through it and v[1] at t[2] does, which
    is the method of Adams and Bashforth, of second order on any grid.
    """
    h = t[0] - t[1]
    if solver == "euler" or len(v) == 1:
        return h * v[0]
    return h * (v[0] + h / (2 * (t[1] - t[2])) * (v[0] - v[1]))


def corrected_step(v: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """The change of x over the last step, from t[1] to t[0], once v[0] at its end is known, too.

    The integral of the line through v[0] and v[1], or of the parabola through v[2] as well: the method of
    Adams and Moulton, of second or third order on any grid.
    """
    h = t[0] - t[1]
    trapezoid = h / 2 * (v[0] + v[1])
    if len(v) == 2:
        return trapezoid
    g = t[1] - t[2]
    return trapezoid - h ** 3 / (6 * (h + g)) * ((v[0] - v[1]) / h - (v[1] - v[2]) / g)


def with_points_at_jumps(grid: Tensor, guidance: Guidance) -> Tensor:
    """The grid, whose inner points that are nearest to where guidance begins and ends are moved there."""
    grid, (low, high) = grid.clone(), torch.tensor(guidance.range, dtype=grid.dtype)   # at `high` it acts
    jumps = [jump for jump in (low, high.nextafter(grid[-1] + 1)) if grid[0] < jump < grid[-1]]
    free = list(range(1, len(grid) - 1))
    for i, jump in enumerate(jumps[:len(free)]):             # enough points stay free for the next one
        place = min(free[:len(free) - (len(jumps) - 1 - i)] or free, key=lambda k: abs(grid[k] - jump))
        grid[place], free = jump, free[free.index(place) + 1:]
    return grid


def integrate(velocity: Velocity, noise: Tensor, grid: Tensor, guidance: Guidance, solver: str = "euler",
              progress: Callable = lambda steps: steps) -> Tensor:
    """Lead x from noise to data over the grid, with one call of `velocity` per step.

    Solvers: "euler", as published. "ab2" remembers the last velocity. "abm" remembers two, and where a step
    has led to is corrected once the velocity there is known: x moves, the velocity is not computed again. The
    velocity jumps where guidance begins or ends: all but Euler have a grid point there, and start anew.
    Args: as for `sample`.
    """
    x, start, v = noise, noise, []
    grid = grid.cpu() if solver == "euler" else with_points_at_jumps(grid.cpu(), guidance)
    for i in progress(range(len(grid) - 1)):
        t = grid[max(0, i - 2):i + 2].flip(0)                # the step's end, its start, those before
        if i and acts(guidance, t[1]) != acts(guidance, t[2]):
            v = []
        v = [velocity(x, t[1]), *v[:2]]
        if solver == "abm" and len(v) > 1:
            x = start + corrected_step(v, t[1:])
        start = x
        x = start + step_by(v, t, solver)
    return x


@torch.no_grad()
def sample(model: DiT, batch: dict[str, Tensor], noise: Tensor, grid: Tensor, guidance: Guidance,
           negative_style: Tensor, solver: str = "euler", progress: Callable = lambda steps: steps) -> Tensor:
    """Integrate from noise to latents.

    Args: batch as data.collate makes it (phonemes (B, 4T), style (B, E), start_time, duration_abs,
        duration_rel (B,)); noise (B, T, C); grid from time_grid; negative_style (1, E); solver one of
        config.SOLVERS; progress wraps the list of steps, e.g. tqdm.
    Returns: latents (B, T, C).
    """
    return integrate(guided(model, batch, guidance, negative_style), noise, grid, guidance, solver, progress)


@torch.no_grad()
def sample_windows(model: DiT, windows: Sequence[tuple[int, dict[str, Tensor]]], noise: Tensor, grid: Tensor,
                   guidance: Guidance, negative_style: Tensor, solver: str = "euler",
                   progress: Callable = lambda steps: steps,
                   keep: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """As `sample`, of any length.

    Args: windows as data.windows makes them, first frames and batches; keep, latents (B, T, C) and how long
        each of their frames (T, 1) is kept, as for `keeping`.
    """
    made = [(first, partial(guided, model, batch, guidance, negative_style)) for first, batch in windows]
    velocity = made[0][1]() if len(made) == 1 else averaged(made, model.config.max_frames)
    if keep is not None:
        velocity = keeping(velocity, noise, *keep)
    return integrate(velocity, noise, grid, guidance, solver, progress)
