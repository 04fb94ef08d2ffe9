"""Track finding. Imports nothing of the rest, so that it also runs inside Triton (numpy, scipy, torch)."""
