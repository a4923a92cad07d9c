"""What a command is started with: its CPUs, its slice of them, its memory allocator."""
