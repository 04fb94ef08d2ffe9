"""Make one endpoint of jobs: records, health, members, the balancer and the metrics store."""
