"""Model folders: weights from elsewhere, the model card, what makes a folder complete."""
