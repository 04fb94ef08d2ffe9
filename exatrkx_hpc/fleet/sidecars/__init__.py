"""Programs beside the balancer."""
