"""Models of others: brought in as run directories."""
