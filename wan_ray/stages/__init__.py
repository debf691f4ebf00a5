"""The path of a row: read -> encode -> denoise -> decode -> publish. A stage takes an item and returns an item."""
