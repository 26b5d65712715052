"""What the features mean, to look at: a bundle built from a run, a page, and a server on this machine alone.

``build`` reads the rows (``scan``), chooses what to show (``choosing``, ``neighbours``, ``atlas``), fetches the rows
that are shown (``showing``, ``renderers``) and writes all of it as JSON into one SQLite file (``pages``, ``store``).
``server`` has the addresses, ``guard`` stands before them, ``serve`` listens, ``export`` writes the addresses as files.
The page is built from ``frontend/`` into ``page/``, and committed: nobody who installs fewfire needs Node.
"""
