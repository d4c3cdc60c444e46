"""Fitting what takes attention apart to what a block of attention does."""
