"""What settings should be and what comes of them, as laws fitted to measured runs."""
