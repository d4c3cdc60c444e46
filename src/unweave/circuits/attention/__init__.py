"""Attention explained: what latents and heads read, by head, by source and by query and key."""
