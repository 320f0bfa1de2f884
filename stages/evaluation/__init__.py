"""How good a predictor is: alignment and errors against exact depth, on pictures it has not been trained on."""
