"""The engine, GenerationService, and the only place that wires everything together."""
