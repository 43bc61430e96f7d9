// The SDK imports libolm for other uses than ours: Platform loads it as a script of its own (ASSETS.olm).
