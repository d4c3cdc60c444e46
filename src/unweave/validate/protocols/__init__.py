"""Public benchmark protocols: each a file that reads like its paper."""
