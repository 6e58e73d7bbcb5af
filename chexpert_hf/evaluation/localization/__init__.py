"""Evaluation of saliency maps against findings whose locations are known."""
