"""From claims to kernel values: resolve, plan, write, read back, report."""
