"""Publishing of models: complete model folders, their cards, terms and checks, and uploads to the Hub."""
