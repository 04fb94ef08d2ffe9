"""Common parts: errors, files, ports, programs, signals. Independent of farms."""
