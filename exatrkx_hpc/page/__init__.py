"""The page of a run: read its ledger into a History, and render it as HTML."""
