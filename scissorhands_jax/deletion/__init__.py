"""Deletion requests: a signed ledger of who asked for what, what was done about it, and what shows it."""
