"""The decompiled network as a machine of features and virtual weights, with no stream in it."""
