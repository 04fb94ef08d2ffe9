"""Events pushed through the endpoint from many nodes."""
