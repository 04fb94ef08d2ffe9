"""Container engines: the specification of a server's container, and how each engine starts the container."""
