"""Prints the devices that JAX finds, as JSON: python -m jaxvlm.web.device_probe."""

from __future__ import annotations

import json


def main() -> None:
    """Prints {"backend", "devices": [{"id", "kind", "memory_bytes"}], "error"}."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:  # a device that another process has, a driver that is missing
        print(json.dumps({"backend": None, "devices": [], "error": " ".join(str(error).split())[:500]}))
        return
    found = [
        {
            "id": device.id,
            "kind": device.device_kind,
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        }
        for device in devices
    ]
    print(json.dumps({"backend": jax.default_backend(), "devices": found, "error": None}))


if __name__ == "__main__":
    main()
