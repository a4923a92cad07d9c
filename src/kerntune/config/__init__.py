"""The configuration: what its files may say, what they say now, and where each value comes from."""
