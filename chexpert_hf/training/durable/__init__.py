"""Trainer checkpoints that survive interruptions, and in which damage is detected."""
