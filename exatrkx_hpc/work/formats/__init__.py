"""How events lie on disk: one small module a format, and the words that they share. The door is `work/events.py`."""
