"""Downloads: sources, transfer, archives, installation."""
