"""A run spread over several nodes."""
