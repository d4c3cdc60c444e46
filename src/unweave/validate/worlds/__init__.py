"""Worlds whose ground truth we planted: what recovery is tested on before any real network."""
