"""One run of clients: workers, their coordinator, its figures."""
