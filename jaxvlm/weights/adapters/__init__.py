"""Adapters as PEFT folders: `adapter_config.json` with their settings, `adapter_model.safetensors` with the weights.

Source: PEFT, `tuners/lora/config.py` (the fields), `utils/save_and_load.py` (the names of tensors).
"""
