"""Measure the speed of the runtimes on this machine."""
