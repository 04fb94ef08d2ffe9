"""Make jobs of a farm: plans, scripts, and the schedulers that run them."""
