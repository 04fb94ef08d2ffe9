"""The servers of a farm: their records, probes, and who may receive requests."""
