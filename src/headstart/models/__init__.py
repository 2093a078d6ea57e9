"""Where models come from: names, catalogue, weights, preprocessing, and what they are made of."""
