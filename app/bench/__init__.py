"""`posemux bench`: how fast a service is, and how much of the bare pipeline's speed is left."""
