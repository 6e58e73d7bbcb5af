"""Texts that are shown in several places."""

DISCLAIMER = "Research software, not a medical device: not for diagnosis."
