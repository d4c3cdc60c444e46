"""Classical ways to take a place apart, as rivals of trained dictionaries at the same sparsity."""
