"""The composition root: what is kept where, and how everything is put together."""
