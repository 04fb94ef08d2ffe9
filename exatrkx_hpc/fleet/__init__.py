"""Jobs become one endpoint: records, health, members, the balancer and the metrics store."""
