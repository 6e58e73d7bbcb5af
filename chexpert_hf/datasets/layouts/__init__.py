"""The layouts of public data sets, one module each."""
