"""Transformers compiled from programs, so that every variable and every edge is known."""
