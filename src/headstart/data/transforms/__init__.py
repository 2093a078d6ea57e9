"""How pixels become the model's input, random changes included."""
