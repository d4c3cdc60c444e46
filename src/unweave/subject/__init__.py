"""The network under study: loading it, its sites, running it, and text for it."""
