"""Events with known truth."""
