"""From a CheXpert folder and a recipe to a trained model folder, with the Hugging Face Trainer."""
