"""The demo app: a web page for radiographs, and the server with its APIs."""
