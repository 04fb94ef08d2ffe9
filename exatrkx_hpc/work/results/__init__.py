"""The output of a run: label files, parts, their layout."""
