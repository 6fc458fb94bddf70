"""From what was trained to what is served: merged weights, GGUF files, models in Ollama, and the proof.

`convert` tells the story of an export; the others are its steps.
"""
