"""The embedded scheduler: the same scripts on this machine."""
