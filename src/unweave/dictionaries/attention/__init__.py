"""Dictionaries of attention: what its scores, patterns and outputs are made of."""
