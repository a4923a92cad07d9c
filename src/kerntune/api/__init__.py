"""The D-Bus API: everything that the bus may ask of the daemon, and what it says."""
