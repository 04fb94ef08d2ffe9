"""Track finding. It imports no other part of the package, so that it runs inside Triton (numpy, scipy, torch)."""
