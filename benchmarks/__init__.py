"""Races against the installed trainers; see README.md."""
