"""kerntune: kernel tuning for AI hosts as a system service."""

__version__ = "0.1.0"
