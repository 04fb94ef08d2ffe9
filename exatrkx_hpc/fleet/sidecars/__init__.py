"""Programs that run next to the balancer."""
