"""From an endpoint and a folder of events to results."""
