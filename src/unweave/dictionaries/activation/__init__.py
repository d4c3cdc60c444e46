"""Activation functions, one paper a file: from pre-activations to sparse latents."""
