"""The attributes with which a command starts: its CPUs, its slice of them, its memory allocator."""
