"""Recurrent cells over whole sequences with their backward passes by hand; differentiable once."""
