"""Registry, errors, files, seeds and logging: helpers that know nothing of the other rooms."""
