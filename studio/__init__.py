"""The studio: a page on this machine on which words are typed, seen on the wave, moved, and sung again.

    __main__.py     settings; starts the server and prints its address
    document.py     what a project's document may be; document <-> lyrics; what of it cannot be sung
    typed.py        a typed text becomes a document; words that stay keep their times
    project.py      the folder of a project: its document and its takes, all written whole
    exchange.py     files that come in and go out
    jobs.py         one thread that sings, its queue, and which singer sings what
    server.py       who may ask, and what is answered
    page/           the page: HTML, style and JavaScript, served as they are
"""
