"""From one event to its labels, by requests to an endpoint or without any server."""
