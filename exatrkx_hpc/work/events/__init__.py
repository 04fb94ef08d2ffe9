"""Event files: find, read, write and convert them."""
