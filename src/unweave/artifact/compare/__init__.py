"""What two artifacts have in common and where they differ."""
