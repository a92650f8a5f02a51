"""The recipe of the embedded model; see baby/README.md. Its modules run from the repository's folder.

    phonemizer.py  python -m baby.phonemizer: trains pronunciation on CMUdict
    songs.py       python -m baby.songs: makes the training songs
    voice.py       the neural voice that sings them
    codec.py       python -m baby.codec: trains latents to sound and back
    pack.py        python -m baby.pack: a training run as the files that are committed
    prompts.py     python -m baby.prompts: random lyrics to align the model with
    judge.py       python -m baby.judge: held-out lyrics and their ground truth; scorers for evaluate.py
    ear.py         python -m baby.ear: trains the ear of evaluate.py
    joins.py       python -m baby.joins: what is heard where the windows of a long song join
"""
