"""What a farm is, and where each of its values comes from."""
