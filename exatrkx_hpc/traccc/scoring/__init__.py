"""Quality of the tracks, measured against the truth."""
