"""Model repositories: read, specialise, check."""
