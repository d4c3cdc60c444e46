"""Classical decompositions behind the same protocol as any dictionary: what all is compared to."""
