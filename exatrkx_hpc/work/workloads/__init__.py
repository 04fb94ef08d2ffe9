"""Kinds of events: what goes into a service, what comes out, and how it is kept. One module a workload."""
