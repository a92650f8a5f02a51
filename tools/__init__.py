"""Tools around training: making shards, looking into them, measuring.

    prepare.py   recordings with their lyrics -> shards to train on
    settings.py  its settings
    shards.py    what is in shards: list, draw, check
    bench.py     how much memory and time sampling and training take
    suite.py     the same of a whole machine, in minutes
    solvers.py   the error of solvers against how often they call the network
"""
