"""Tasks that need nothing of one another, on many processes or machines, each done once."""
