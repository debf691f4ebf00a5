"""FLOPs, bytes, memory, time and money of a clip: pure arithmetic, no torch."""
