"""From a data set and a recipe to a trained model folder, with the Hugging Face Trainer."""
