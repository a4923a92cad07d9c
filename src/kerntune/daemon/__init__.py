"""The composition root: it puts the parts together, and knows where the daemon keeps its files."""
