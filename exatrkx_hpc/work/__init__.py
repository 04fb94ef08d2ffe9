"""An endpoint and a folder of events become results."""
