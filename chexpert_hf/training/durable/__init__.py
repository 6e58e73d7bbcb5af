"""Checkpoints that survive interruptions."""
