"""Attribution maps as a rival kind of explanation: made, checked against chance, and measured."""
