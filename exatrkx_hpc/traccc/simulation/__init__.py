"""Events of cells with known truth."""
