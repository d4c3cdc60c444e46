"""Encoders, one paper a file: from a site's vectors to pre-activations."""
