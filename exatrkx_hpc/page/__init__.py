"""The page of a run: its ledger becomes a value, the value becomes HTML."""
