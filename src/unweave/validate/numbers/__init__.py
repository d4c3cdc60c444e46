"""The four numbers of any way to take a network apart, in bits per token (design, section 4)."""
