"""What the servers measured of themselves."""
