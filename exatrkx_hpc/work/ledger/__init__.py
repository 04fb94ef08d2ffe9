"""The durable record of which events are done."""
