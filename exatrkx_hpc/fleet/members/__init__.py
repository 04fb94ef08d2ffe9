"""The servers of a farm: their records, probes, and which of them receive requests."""
