"""Training: from a data set and a recipe to a model folder, with the Hugging Face Trainer."""
