"""Events in files of every format."""
