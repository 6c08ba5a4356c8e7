"""What a server accepts of an adapter; set once from its configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    max_rank: int = 64
    max_weights_bytes: int = 2 * 1024**3  # adapter_model.safetensors
    max_config_bytes: int = 1024**2  # adapter_config.json
    # Refuses files that do not name the base they were trained on.
    require_verified_base: bool = False

    def max_bytes_of(self, filename: str) -> int:
        is_config = filename.endswith(".json")
        return self.max_config_bytes if is_config else self.max_weights_bytes
