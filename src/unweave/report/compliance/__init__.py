"""Whether an artifact does what somebody requires of it, requirement by requirement."""
