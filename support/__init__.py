"""Plumbing: command lines, files, sound files, downloads, processes, checkpoints, shards.

    cli.py           command lines made from settings classes; how a user's mistake ends
    files.py         text files read with good errors; files written whole or not at all
    audio.py         sound files <-> waves; loudness and peaks of finished songs
    hub.py           where each file of a model comes from; sample.py --doctor
    assets.json      the files that others publish: place, size, checksum, licence
    checkpoint.py    checkpoint folders that are whole or not there; a model's config.json
    processes.py     rank, world size and collectives of torch.distributed; the device
    log.py           what a training run reports
    stream.py        songs of streamed shards in an order that the seed decides, with exact resume
    original.py      settings files of the published code
    tars.py          shards: where they are, and the songs in them
    torchscript.py   the tensors of a TorchScript file, without its code
    phonemizer.py    checkpoint files of DeepPhonemizer, read safely
    mulan.py         MuQ-MuLan, built from its files on disk

support imports nothing of the project but config.
"""
