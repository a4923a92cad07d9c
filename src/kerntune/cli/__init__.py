"""The command line `kerntune`: spells requests, shows answers, and decides nothing about the kernel."""
