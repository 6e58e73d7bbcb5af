"""How fast models score on this machine, side by side with other people's ways of doing the same."""
