"""The servers of a farm: their records, their probes, and the choice of the ready ones."""
