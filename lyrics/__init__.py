"""Lyrics: words with times, how they are read, written, timed, pronounced and checked.

Reading order:

- timing.py      the model: `Lyrics` of `Line`s of `Word`s, times in seconds
- formats/       lyrics files in LRC, SRT, ASS, TextGrid, JSON and others, read and written
- voices.py      who sings: the lead, backing, or a voice that the file names
- spoken.py      numbers, signs and abbreviations as English words
- pronounce.py   one word to phonemes, with the user's own pronunciations
- plan.py        times for words without any: a beat grid, or the song's own pace between known times
- revise.py      new words for a song that has times: those that stay keep theirs
- align.py       times from a recording: letters laid on what a speech model hears
- models.py      the published models that align.py listens with, of models.json, and its settings
- check.py       phonemes for all words of a song, and what cannot be sung or may be sung badly
- __main__.py    the commands: python -m lyrics plan, check, convert, align
"""
