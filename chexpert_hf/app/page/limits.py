"""Limits of the page: how much one visitor may ask for at once, and how long the page keeps anything.

The limits of one file and of an archive are in `radiographs`.
"""

SESSION_SECONDS = 1800  # for which scores and images stay in a visitor's session after they were made
MAX_VIEWS = 12  # radiographs of one study; the viewer holds all of them
MAX_FILES = 1000  # radiographs in one list, those in archives included
MAX_OVERLAYS_BYTES = 500_000_000  # size at which an archive of overlays is closed, and says so
BATCH_WORKERS = 2  # radiographs of one list that are read and scored at once
PROGRESS_SECONDS = 0.4  # between two reports of progress
