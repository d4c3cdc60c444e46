"""Moving activation vectors from the subject to whoever fits parts to them."""
