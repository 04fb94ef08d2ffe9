"""Processing of events: from an endpoint and a folder of events to results."""
