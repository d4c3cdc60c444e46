"""Named, complete recipes: each a published way to train, with its numbers and its source."""
