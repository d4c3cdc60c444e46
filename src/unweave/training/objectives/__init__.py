"""What training makes small, one paper a file."""
