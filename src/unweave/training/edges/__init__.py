"""Which edges of a network are kept, and when others go."""
