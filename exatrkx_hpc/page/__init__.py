"""What a run was, told on one page: its ledger becomes a value, the value becomes HTML."""
