"""A farm becomes jobs: plans, scripts, and the schedulers that run them."""
