"""Sound levels as acousticians know them: LAeq, LAF, percentiles, third octaves, each second."""
