"""The embedded scheduler, which runs the same scripts on this machine."""
