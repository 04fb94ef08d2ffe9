"""The balancer in front of the ready members."""
