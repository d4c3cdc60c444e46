"""What a saved thing is: files, hashes, tables, firings; no model code."""
