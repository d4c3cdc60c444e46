"""Parts put together into a network that stands in for the original."""
