"""How good a model is, measured as those measure it who published the numbers to compare with."""
