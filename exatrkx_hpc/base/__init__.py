"""What every room may use: errors, files, ports, programs, signals. Knows nothing of farms."""
