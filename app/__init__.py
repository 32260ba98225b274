"""The posemux service: an HTTP door, an engine with one device thread, and the way through it."""
