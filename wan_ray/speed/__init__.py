"""`wan-ray bench --engine`: how fast this machine runs each part of a model, and what a DiT block's time goes to."""
