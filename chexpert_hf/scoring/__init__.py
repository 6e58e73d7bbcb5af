"""From a model folder to scores and maps."""
