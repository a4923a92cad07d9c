"""`kerntune bench`: what a change of settings does to the loading of a model, measured in pairs."""
