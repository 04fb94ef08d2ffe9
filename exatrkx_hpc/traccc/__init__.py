"""The CPU twin of traccc: cells in, fitted tracks out. Only `simulation` and `scoring` stay at home."""
