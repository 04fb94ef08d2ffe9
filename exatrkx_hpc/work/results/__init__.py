"""What a run leaves: label files, parts, their layout."""
