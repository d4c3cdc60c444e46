"""One run by many processes: the rows of each batch are shared out, or the latents, or both."""
