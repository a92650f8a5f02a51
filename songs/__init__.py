"""What surrounds a song: its files and page, the choice between takes, how well it is sung.

    manifest.py               what a manifest asks for; the report on its songs; the songs of a folder
    files.py                  where a song's files go, and the JSON beside it, from which it can be made again
    before.py                 a finished song, from its files or its account
    edit.py                   which spans of it are sung again
    splice.py                 how they are sung, and joined to the rest
    asked.py                  settings checked and completed
    takes.py                  variants, the best of several takes, a manifest sung by several processes
    page.py, page.html        a page that plays a song and lights its words
    picture.py                a spectrogram with words above
    tags.py                   tags in the sound file: title, lyrics with times, seed
    listeners.py              recognisers of sung words and scorers, for evaluate.py
    report.py, report.html    what evaluate.py shows: a table and a page
    checkpoint_samples.py     one song sung by every checkpoint of a training run
    pairs.py                  preference pairs for train_dpo.py
"""
