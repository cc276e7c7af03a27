"""Helpers that depend on no other package of the library: registry, errors, files, seeds, logging, safe pickles."""
