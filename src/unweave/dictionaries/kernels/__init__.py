"""The arithmetic of sparse parts: only the pre-activations are ever dense, one tile at a time."""
