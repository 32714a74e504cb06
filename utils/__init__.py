"""What every command shares: errors, files, flags, progress, signals, processes."""
