"""The ledger: the durable record of the state of each event."""
