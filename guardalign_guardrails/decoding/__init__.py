"""The local model's half of the method: the safety prefix is kept in the attention of instruction and answer."""
