"""The doctor examines a host and what people set on it by hand; it changes nothing, runs nothing, needs no daemon."""
