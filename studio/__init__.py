"""The studio: a page on this machine on which words are typed, seen on the wave, moved, and sung again.

    __main__.py     settings; starts the server and prints its address
    document.py     what a project's document may be; document <-> lyrics; a typed text becomes a document
    project.py      the folder of a project: its document and its takes, all written whole
    jobs.py         one thread that sings, its queue, and how it is cancelled
    server.py       who may ask (guards) and what is answered (routes)
    page/           the page: HTML, style and JavaScript, served as they are
"""
