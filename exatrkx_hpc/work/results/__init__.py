"""The output of a run: result files, parts, and their layout."""
