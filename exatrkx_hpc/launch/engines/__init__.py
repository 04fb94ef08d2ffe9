"""Container engines: what a server needs of one, and how each of them starts it."""
