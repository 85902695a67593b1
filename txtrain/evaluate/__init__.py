"""How good a trained model is on text: `txtrain eval`."""
