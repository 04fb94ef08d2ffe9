"""The balancer before the ready members."""
