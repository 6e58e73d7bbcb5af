"""Models in the formats of others: reading theirs, writing ours for them."""
