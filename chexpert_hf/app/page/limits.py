"""How much one visitor may ask for at once, and how long the page keeps anything: all bounds of the page.

What one file may be is bounded where it is read (`data.radiograph`), and what an archive may become where it is opened
(`inference.folders.archives`).
"""

SESSION_SECONDS = 1800
"""How long scores and images stay in a visitor's session after they were made."""

MAX_VIEWS = 12
"""Radiographs of one study; the viewer holds all of them."""

MAX_FILES = 1000
"""Radiographs in one list, those in archives included."""

MAX_OVERLAYS_BYTES = 500_000_000
"""Size at which an archive of overlays is closed, and says so."""

BATCH_WORKERS = 2
"""Radiographs of one list that are read and scored at once."""

PROGRESS_SECONDS = 0.4
"""Between two reports of progress."""
