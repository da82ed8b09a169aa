"""The one that acts when nobody is logged in: `python -m heliostat.controller`.

Level-triggered: each round reads the state of the world, asks pure functions what should be, and acts. Its state lies
in the store, it can be killed at any line, and two of them do no harm: only the holder of the lease acts.

A file for each duty, and `loop.py` that calls them.
"""
