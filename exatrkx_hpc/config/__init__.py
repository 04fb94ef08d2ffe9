"""The configuration of a farm, and the source of each value."""
