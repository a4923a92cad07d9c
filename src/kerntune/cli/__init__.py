"""The command line `kerntune`: it sends requests, shows answers, and decides nothing about the kernel."""
