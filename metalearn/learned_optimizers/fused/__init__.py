"""The coordinatewise LSTM by a kernel of its own: a step of all coordinates in one pass, and the way back."""
