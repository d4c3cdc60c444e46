"""What is known of attention, held to words, controls and published facts."""
