"""The command line, `unskew`."""
