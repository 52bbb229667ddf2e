"""Damaged and hostile inputs for everything that reads something from outside; see `python -m tests.fuzz --help`."""
