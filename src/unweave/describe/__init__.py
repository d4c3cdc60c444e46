"""Words for parts: evidence, claims, explanations."""
