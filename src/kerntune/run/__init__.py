"""A command behind a shield: what it starts with, the parent beside it, and the look at its memory."""
