"""The endpoint for Python and notebooks."""
