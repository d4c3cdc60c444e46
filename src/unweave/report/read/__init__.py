"""Readers: from the files of an artifact to the frozen facts that the page tells."""
