"""`kerntune bench`: it measures in pairs what a change of settings does to the loading of a model."""
