"""Speed of the runtimes on this machine."""
