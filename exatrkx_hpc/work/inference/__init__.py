"""Inference of one event, by requests to an endpoint or without a server."""
