"""Parameter components: a network's own weights as sums of rank-one pieces with causal gates."""
