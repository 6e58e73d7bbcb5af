"""From probabilities and labels to figures: pure functions on arrays."""
