"""Coders that need no training by gradient: pursuits, FISTA, K-SVD, ITDA; one paper a file."""
