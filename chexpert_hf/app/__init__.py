"""The demo: server and page."""
