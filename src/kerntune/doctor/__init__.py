"""Looks at a host and at what people set on it by hand; it changes nothing, runs nothing, and needs no daemon."""
