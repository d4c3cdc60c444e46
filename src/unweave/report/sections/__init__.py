"""The page's sections, one a file, each a function of what it tells."""
