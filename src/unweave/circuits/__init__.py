"""Graphs of a network's own components: what each edge does, and the network run with a few."""
