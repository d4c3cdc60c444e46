"""One self-contained page about an artifact."""
