"""What an adapter is: artifact, canonical form, immutable store, registry, AdapterService."""
