"""The checks that `check_dictionary` runs, by who makes the promise."""
