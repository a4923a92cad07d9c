"""Generators of files in the checkout; `make generated` runs them all, and no package has them."""
