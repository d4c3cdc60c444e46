"""The layer construction: features of one layer, and interactions that make those of the next."""
