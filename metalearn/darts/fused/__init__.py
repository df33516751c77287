"""Mixed cells computed many edges at a time, from the parameters of the plain ones."""
