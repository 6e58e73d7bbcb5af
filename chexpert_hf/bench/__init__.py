"""How fast models score on this machine."""
