"""How songs are sung: a part, their variants, the best of several takes, and all songs of a manifest.

Read `jobs_of` (what is to be sung), `between` (a part's words), `sing_takes` (variants, or takes of which the
best becomes the song), `finished` (what need not be sung again), then `sing_manifest` (many songs, by one
process or by many that torchrun started).
"""

import contextlib
import dataclasses
import functools
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from config import SONG_ERRORS, SampleConfig, UserError
from lyrics.timing import Lyrics, Part, Word
from songs.asked import resolve
from songs.files import Outputs, check_outputs, check_plan, outputs_of, request_of, write
from songs.manifest import Report, Song, read_manifest, song_of
from support.files import describe, read_json
from support.hub import ModelFiles, locate
from support.processes import Processes

Jobs = list[tuple[dict, Outputs]]        # the variants or the takes of a song: requests and files


def jobs_of(song: Song, files: ModelFiles, cfg: SampleConfig, first: int = 0,
            before: dict | None = None) -> Jobs:
    """The requests and files of a song's variants or takes, which count from `first`.

    Args: before, the account of the song that is edited.
    """
    return [(request_of(song, first + i, files, cfg, before), outputs)
            for i, outputs in enumerate(outputs_of(song, cfg, cfg.best_of))]


def between(lyrics: Lyrics, begin_s: float, end_s: float) -> Lyrics:
    """The words of a part of a song, in seconds from the part's start; those across its edges are cut."""
    def cut(parts: Iterable[Word | Part]) -> tuple:
        return tuple(dataclasses.replace(
            part, start=max(part.start, begin_s) - begin_s, end=min(part.end, end_s) - begin_s,
            **{key: cut(inner) for key, inner in vars(part).items() if key in ("phones", "syllables")})
            for part in parts if begin_s < part.end and part.start < end_s)

    lines = (dataclasses.replace(line, words=cut(line.words), start=None, end=None) for line in lyrics.lines)
    return dataclasses.replace(lyrics, lines=tuple(line for line in lines if line.words))


def chooser_of(cfg: SampleConfig, device: torch.device) -> Callable[[Path, dict], float]:
    """The scorer that chooses between takes. Raises: UserError if it is not available."""
    from evaluate import scorer_of

    if device.type == "cuda":
        torch.cuda.set_device(device)                        # for scorers that take the current one
    return scorer_of(cfg.scorer, dataclasses.replace(cfg, device=str(device)))


def judge_of(cfg: SampleConfig) -> list:
    """The settings that decide how takes are scored."""
    return [cfg.scorer, cfg.recogniser, cfg.separate]


def sing_takes(model, prompt, jobs: Jobs, cfg: SampleConfig, scorer: Callable | None,
               bar: Callable) -> Iterator[tuple[dict, Outputs, dict[str, float]]]:
    """Sing and write every variant or, with a scorer, the takes and the best one under the song's own name.

    Takes that exist are not sung again. Ties go to the first.

    Args: model and prompt as in sample.py; bar, which wraps the steps as tqdm does.
    Yields: request, files and seconds of each finished song.
    """
    if scorer is None:
        for request, outputs in jobs:
            check_plan(outputs, prompt.plan, prompt.song.lyrics)
            take = model.sing(prompt, request["seed"], cfg, bar)
            write(take, prompt, request, cfg, outputs)
            yield request, outputs, take.seconds
        return

    [best], scores, leader = outputs_of(prompt.song, cfg), {}, None
    check_plan(best, prompt.plan, prompt.song.lyrics)
    bare, no_page = dataclasses.replace(prompt, plan=None), dataclasses.replace(cfg, page=False)
    for request, outputs in jobs:
        take = None
        if not outputs.made(request, False):
            take = model.sing(prompt, request["seed"], cfg, bar)
            write(take, bare, request, no_page, outputs, candidate_of=best.song.name)
        value = scores[request["seed"]] = scorer(outputs.song, read_json(outputs.account))
        print(f"{outputs.song}: {cfg.scorer} {value:.4f}", flush=True)
        if leader is None or value > leader[0]:
            leader = value, request, take
    _, request, take = leader
    take = take or model.sing(prompt, request["seed"], cfg, bar)        # an earlier run sang it
    write(take, prompt, request, cfg, best, best_of={"by": judge_of(cfg), "scores": scores})
    yield request, best, take.seconds


def finished(song: Song, jobs: Jobs, cfg: SampleConfig) -> Jobs | None:
    """The requests and files of what was asked for, if all of it exists; of takes, the chosen one."""
    if cfg.best_of == 1:
        return jobs if all(outputs.made(request, cfg.page) for request, outputs in jobs) else None
    [best] = outputs_of(song, cfg)
    if not all(outputs.made(request, False) for request, outputs in jobs):
        return None
    chosen = next(((request, best) for request, _ in jobs if best.made(request, cfg.page)), None)
    how = chosen and best.recorded("best_of")
    asked = judge_of(cfg), [str(request["seed"]) for request, _ in jobs]
    return [chosen] if how and (how["by"], [*how["scores"]]) == asked else None


# All songs of a manifest

@contextlib.contextmanager
def reported(name: str, report: Report | None = None) -> Iterator[None]:
    """Report an error of one song in one line with its id, and go on with the others."""
    try:
        yield
    except BrokenPipeError:                                  # nobody reads on: no fault of the song
        raise
    except SONG_ERRORS as e:
        print("error:", UserError(f'song "{name}": {describe(e)}'), file=sys.stderr, flush=True)
        if report:
            report.add(name, "failed", error=describe(e))


def sing_manifest(cfg: SampleConfig, processes: Processes, stages: tuple, first: int = 0) -> list[dict]:
    """Sing this process's share of a manifest's songs. Returns: what became of each song, of all processes.

    Args: stages, the classes Prompts and Model of sample.py, which imports this module; first, the number of
        each song's first variant.
    """
    make_prompts, load_model = stages
    files, device = processes.one_first(lambda: locate(cfg)), processes.device(cfg.device)
    cfg, report, pending = resolve(cfg, files.preset, device), Report(cfg.out_dir, processes), []
    torch.set_num_threads(cfg.threads)
    entries = read_manifest(cfg.manifest, cfg.batch_infer_num, cfg.best_of)
    report.begin(cfg)

    # Every process looks at all songs, so that all agree on what is left to do, and reports its own.
    for i, (name, entry) in enumerate(entries):
        mine = i % processes.world == processes.rank
        with reported(name, report) if mine else contextlib.suppress(*SONG_ERRORS):
            song = song_of(name, entry, cfg)
            jobs = jobs_of(song, files, cfg, first)
            there = finished(song, jobs, cfg)
            if there is None:
                check_outputs(song, cfg)
                pending.append((song, jobs))
            elif mine:
                report.add(name, "finished", there)
    processes.wait()

    # First all words and styles: the style encoder is gone before the network comes.
    prompts, ready = make_prompts(files, cfg, device), []
    for song, jobs in pending[processes.rank::processes.world]:
        with reported(song.id, report):
            ready.append((prompts.make(song), jobs))
    del prompts
    gc.collect()

    model = load_model(files, device, cfg.dtype, cfg.compile) if ready else None
    scorer = chooser_of(cfg, device) if ready and cfg.best_of > 1 else None
    for prompt, jobs in ready:
        with reported(prompt.song.id, report):
            began, bar = time.perf_counter(), functools.partial(tqdm, disable=processes.world > 1)
            left = [job for job in jobs if scorer or not job[1].made(job[0], cfg.page)]
            sung = [job[:2] for job in sing_takes(model, prompt, left, cfg, scorer, bar)]
            jobs = sung if scorer else jobs
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            print(f"{prompt.song.id}: {len(jobs)} x {prompt.duration_s:.1f} s of song in "
                  f"{time.perf_counter() - began:.1f} s: {jobs[0][1].song.resolve()}{more}", flush=True)
            report.add(prompt.song.id, "made", jobs)
    return report.merge([name for name, _ in entries])
