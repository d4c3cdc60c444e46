"""The mathematical objects: what maps activations to sparse latents and back."""
