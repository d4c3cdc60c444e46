"""Small SVG drawings: no state, no script, colours by class so that dark mode and print follow."""
