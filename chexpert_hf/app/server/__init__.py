"""The server of the page: shared scoring, endpoints for programs, limits, the temporary folder, start and stop."""
