"""How the stand-in networks are trained."""
