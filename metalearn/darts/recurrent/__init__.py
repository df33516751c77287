"""The space of recurrent cells (section 3.1.2): genotype, cell, supernet, the language model around them."""
