"""What a dictionary has found of a world whose truth is known, beside its chance level."""
