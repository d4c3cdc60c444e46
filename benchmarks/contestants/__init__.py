"""Everybody who is raced, each built in an environment of its own."""
