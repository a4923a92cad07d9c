"""The only package that touches /proc, /sys and udev; it knows files, not tunables."""
