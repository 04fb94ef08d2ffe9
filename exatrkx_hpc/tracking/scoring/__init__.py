"""Quality of labels."""
