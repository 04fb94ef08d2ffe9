"""Training of the stand-in networks."""
